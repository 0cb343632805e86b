"""What the kernel counts and times of itself in each process: requests, calls to Daraja, jobs."""

from mpesa_gateway.meter import LONG, Counter, Histogram

REQUESTS = Counter(
    "mpesa_http_requests_total",
    "Requests that were answered, by route and status; those for no route of ours are (unknown).",
    ("method", "route", "status"),
    most=2000,
)
REQUEST_SECONDS = Histogram(
    "mpesa_http_request_seconds", "From a request's first byte to the end of its answer.", ("route",)
)

DARAJA_CALLS = Counter(
    "mpesa_daraja_calls_total",
    "Calls to Daraja, by operation and how they ended: ok, fault (a code says which), unreachable, no_answer, no_json.",
    ("env", "operation", "outcome", "code"),
    most=1000,
)
DARAJA_SECONDS = Histogram("mpesa_daraja_call_seconds", "How long Daraja took to answer.", ("env", "operation"))
OUTCOMES = Counter(
    "mpesa_call_outcomes_total",
    "Outcomes of calls to M-Pesa that Postgres could not take at once: kept in the process, written later, or lost at "
    "its stop.",
    ("state",),
    begins=(("kept",), ("written_late",), ("lost",)),
)
JOBS = Counter("mpesa_jobs_total", "Jobs that this process ran, by how they ended.", ("job", "outcome"))
JOB_SECONDS = Histogram("mpesa_job_seconds", "How long jobs ran.", ("job",), bounds=LONG)

COUNTS: tuple[Counter | Histogram, ...] = (
    REQUESTS,
    REQUEST_SECONDS,
    DARAJA_CALLS,
    DARAJA_SECONDS,
    OUTCOMES,
    JOBS,
    JOB_SECONDS,
)
