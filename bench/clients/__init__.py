"""Clients made of the OpenAPI document, and tried against a served gateway: Python, TypeScript and Postman."""
