"""Settings of callbacks."""

from typing import Annotated, Literal

import msgspec

from mpesa_gateway.config import Count, Days
from mpesa_gateway.daraja.signatures import HEADER

SAFARICOM = (
    "196.201.214.200",
    "196.201.214.206",
    "196.201.214.207",
    "196.201.214.208",
    "196.201.213.114",
    "196.201.213.44",
    "196.201.212.127",
    "196.201.212.128",
    "196.201.212.138",
    "196.201.212.129",
    "196.201.212.132",
    "196.201.212.136",
    "196.201.212.74",
    "196.201.212.69",
)
"""Addresses that Daraja's callbacks come from, as seen by many integrations."""


class CallbacksSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[callbacks]``."""

    allowlist: tuple[str, ...] = SAFARICOM
    enforce_allowlist: Literal["live", "always", "never"] = "live"
    signature: Literal["required", "if_present", "off"] = "if_present"
    signature_header: str = HEADER
    dedup_hours: Count = 24
    unmatched_after_hours: Count = 48
    max_body_bytes: Count = 1_048_576
    sandbox_per_minute: Count = 600
    keep_refused: Annotated[int, msgspec.Meta(ge=0)] = 10_000
    keep_days: Days = 180
    keep_refused_days: Days = 30
