"""Export of OpenTelemetry traces: requests, calls to M-Pesa, jobs and webhooks."""

COMMANDS = ()
