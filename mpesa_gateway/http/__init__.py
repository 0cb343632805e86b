"""HTTP server and client: envelope, errors, pages, authentication and egress."""
