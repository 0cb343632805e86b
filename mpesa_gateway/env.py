"""The two worlds that never meet: Daraja's sandbox, and live, where real money moves."""

from typing import Annotated, Literal

import msgspec

Env = Literal["sandbox", "live"]
Environment = Annotated[Env, msgspec.Meta(title="Environment")]
"""The same as the API shows it."""

ENVS: tuple[Env, ...] = ("sandbox", "live")
