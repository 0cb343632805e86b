"""The API tried by its own description: schemathesis asks a served gateway for what its OpenAPI document promises."""
