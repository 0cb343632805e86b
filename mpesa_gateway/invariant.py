"""What must hold in the books at every moment: a sentence, and a query for what breaks it."""

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Invariant:
    """``sql`` selects one column of text, the ids of what breaks the ``sentence``; nothing is as it should be.

    It is asked on a live system, while money flows, in one statement: what changes together must be committed together.
    Where something may be as it is for a while, ``grace`` says for how long, and ``$1`` is the moment so long ago.
    """

    name: str
    sentence: str
    sql: str
    grace: timedelta | None = None
