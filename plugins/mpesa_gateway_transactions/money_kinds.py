"""The kinds of money."""

from typing import Literal

MoneyKind = Literal["stk", "c2b", "reversal", "b2c", "b2b", "fee", "other"]
