"""What money was moved for."""

from typing import Literal

MoneyKind = Literal["stk", "c2b", "reversal", "b2c", "b2b", "fee", "other"]
