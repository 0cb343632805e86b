"""Metrics of c2b."""

from prometheus_client import CollectorRegistry, Counter

ANSWERS = ("accepted", "C2B00011", "C2B00012", "C2B00013", "C2B00014", "C2B00015", "C2B00016")


class C2bMetrics:
    """Answers to validation requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.validations = Counter(
            "mpesa_c2b_validations_total",
            "Validation requests by answer: accepted, or a refusal's code; in doubt, Postgres did not respond in time.",
            ("answer", "doubt"),
            registry=registry,
        )
        for answer in ANSWERS:
            for doubt in ("no", "yes") if answer in {"accepted", "C2B00016"} else ("no",):
                self.validations.labels(answer, doubt)
