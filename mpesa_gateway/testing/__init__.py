"""What this project and third-party plugins test with: real servers, real processes, nothing pretended."""
