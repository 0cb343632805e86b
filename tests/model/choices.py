"""What there is to choose from at each step: who, how much, and what goes wrong."""

from enum import Enum

from hypothesis import strategies as st

from mpesa_gateway_simulator import misbehaviour
from tests.model.wire import Act, Fate, Plan

PHONES = (
    *("254711000101", "254711000102", "254711000103"),
    # These behave by themselves: see docs/simulator.md.
    *(f"254700000{digits}" for digits in ("006", "007", "010", "011", "012", "013", "014", "015", "018", "020", "021")),
)
SILENT = "254700000007"
"""Pays, and Daraja never calls back."""

REFERENCES = (None, None, None, "RENT", "x9 ")
PUSH_FAULTS = (
    "400.002.02",
    "400.003.02",
    "401.002.01_token",
    "403.002.1001",
    "404.001.03",
    "429.001.01",
    "500.001.1001",
    "500.001.1001_no_iccid",
    "500.002.1001_maintenance",
    "500.002.1001_internal",
    "500.003.02",
    "500.003.02_busy",
    "500.003.03",
    "500.003.1001",
    "firewall_403",
    "proxy_spike_arrest_429",
    "proxy_spike_arrest_500",
    "proxy_token_401",
)
QUERY_FAULTS = ("500.003.02", "500.003.1001", "404.001.03", "proxy_spike_arrest_500", "html_200", "firewall_403")


def _normal_first(known: frozenset[str]) -> tuple[str, ...]:
    return ("normal", *sorted(known - {"normal"}))


STATUS_HABITS = _normal_first(misbehaviour.STATUS_HABITS)
REVERSAL_HABITS = _normal_first(misbehaviour.REVERSAL_HABITS)
# An endless statement, and one that does not say what its rows are, have tests of their own: here each row counts.
PULL_HABITS = _normal_first(misbehaviour.PULL_HABITS - {"endless", "no_type"})
QUERY_HABITS = _normal_first(misbehaviour.QUERY_HABITS)
CALLBACK_HABITS = _normal_first(misbehaviour.CALLBACK_HABITS)
ACK_HABITS = _normal_first(misbehaviour.ACK_HABITS)
OAUTH_HABITS = _normal_first(misbehaviour.OAUTH_HABITS)
INITIATORS = ("testapi", "testapi", "no_role", "bad_credential", "locked", "not_permitted", "inactive", "poor")


class Accident(Enum):
    """What happens by itself."""

    VALKEY = "Valkey is emptied"
    TOKEN = "another process has fetched a token, and ours is no longer valid"
    NO_TOKEN = "that, and the next one is refused"
    ENDPOINT = "the merchant's endpoint answers otherwise from now on"
    ENDPOINT_REMOVED = "the merchant removes its endpoint, and sets it again"
    WORKER = "a worker is killed while it delivers"
    REPLAY = "the merchant has everything sent again that it did not take"

    def __repr__(self) -> str:
        return f"Accident.{self.name}"


acts = st.lists(st.sampled_from(Act), max_size=2).map(tuple)
plans = st.just(Plan()) | st.builds(Plan, st.sampled_from(Fate), acts, acts)
which = st.integers(0, 7)
"""One of many, counted from the newest."""

purchase = st.tuples(st.sampled_from((70, 500)), st.sampled_from(PHONES[:3]), st.booleans())
purchases = st.lists(purchase, min_size=1, max_size=3)
