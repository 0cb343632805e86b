"""Daraja environments: sandbox, and live with real money."""

from typing import Annotated, Literal

import msgspec

Env = Literal["sandbox", "live"]
Environment = Annotated[Env, msgspec.Meta(title="Environment")]
"""The env in the API."""

ENVS: tuple[Env, ...] = ("sandbox", "live")
