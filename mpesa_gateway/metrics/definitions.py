"""Counters and histograms of the kernel."""

from prometheus_client import CollectorRegistry, Counter, Histogram

OTHER = "other"
"""Replaces unexpected values of a label."""

SHORT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds, for requests and calls."""

LONG_BUCKETS = (5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 300.0, 900.0)
"""Seconds, for jobs and for payers."""


class KernelMetrics:
    """Each label has a bounded set of values."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "mpesa_http_requests_total",
            "Requests answered, by route and status. Requests without a route of the gateway are (unknown).",
            ("method", "route", "status"),
            registry=registry,
        )
        self.request_seconds = Histogram(
            "mpesa_http_request_seconds",
            "Time from the first byte of a request to the end of its response.",
            ("route",),
            buckets=SHORT_BUCKETS,
            registry=registry,
        )
        self.daraja_calls = Counter(
            "mpesa_daraja_calls_total",
            "Calls to Daraja, by operation and outcome: ok, fault (with its code), unreachable, no_answer, no_json.",
            ("env", "operation", "outcome", "code"),
            registry=registry,
        )
        self.daraja_seconds = Histogram(
            "mpesa_daraja_call_seconds",
            "Time that Daraja took to respond.",
            ("env", "operation"),
            buckets=SHORT_BUCKETS,
            registry=registry,
        )
        self.call_outcomes = Counter(
            "mpesa_call_outcomes_total",
            "Outcomes of calls to M-Pesa that Postgres could not store at once: kept in the process, written_late, or "
            "lost when the process stopped.",
            ("state",),
            registry=registry,
        )
        self.jobs = Counter(
            "mpesa_jobs_total",
            "Jobs that this process ran, by outcome: done, failed, stopped.",
            ("job", "outcome"),
            registry=registry,
        )
        self.job_seconds = Histogram(
            "mpesa_job_seconds", "Time that jobs ran.", ("job",), buckets=LONG_BUCKETS, registry=registry
        )
        for state in ("kept", "written_late", "lost"):
            self.call_outcomes.labels(state)
