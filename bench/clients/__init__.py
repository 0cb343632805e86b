"""Python and TypeScript clients, generated from the OpenAPI document and run against a gateway."""
