"""Property tests of the API: schemathesis checks a running gateway against its OpenAPI document."""
