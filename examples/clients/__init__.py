"""A payment from start to end with clients that are generated from the OpenAPI document: docs/clients.md."""
