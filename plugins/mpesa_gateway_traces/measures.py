"""What the traces plugin counts in each process."""

from mpesa_gateway.meter import Counter

SPANS = Counter(
    "mpesa_spans_total",
    "Spans that the collector took (sent) or did not want (refused), or that found no room to wait for it (dropped).",
    ("outcome",),
    begins=(("sent",), ("dropped",), ("refused",)),
)

COUNTS = (SPANS,)
