"""A payment from start to end with clients generated from the OpenAPI document: docs/clients.md."""
