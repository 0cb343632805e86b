"""What there is to choose from at each step: who, how much, and what goes wrong."""

from enum import Enum

from hypothesis import strategies as st

from mpesa_gateway_simulator import habits
from tests.model.wire import Act, Fate, Plan

PHONES = (
    *("254711000101", "254711000102", "254711000103"),
    # These behave by themselves: see docs/simulator.md.
    *(f"254700000{digits}" for digits in ("006", "007", "010", "011", "012", "013", "014", "015", "018", "020", "021")),
)
PUSH_FAULTS = (
    "400.002.02",
    "400.003.02",
    "404.001.03",
    "500.001.1001",
    "500.003.02",
    "500.003.03",
    "500.003.1001",
)
RESULT_HABITS = ("normal", *sorted({*habits.RESULT_HABITS, "internal_error"} - {"normal"}))
PULL_HABITS = ("normal", *sorted(habits.PULL_HABITS - {"normal"}))
INITIATORS = ("testapi", "testapi", "no_role", "bad_credential", "locked", "not_permitted", "inactive", "poor")


class Accident(Enum):
    """What happens by itself."""

    VALKEY = "Valkey is emptied"
    TOKEN = "somebody else has fetched a token, and ours is no longer valid"
    NO_TOKEN = "that, and the next one is refused"
    ENDPOINT = "the merchant's endpoint answers otherwise from now on"
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
