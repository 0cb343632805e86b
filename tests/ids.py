"""Ids of rows that tests write as if they had been made at another time."""

from datetime import datetime

from mpesa_gateway.ids import Ids


def id_at(prefix: str, moment: datetime, number: int = 0) -> str:
    """Return the id of this number among those of the millisecond of ``moment``."""
    return f"{beginning(prefix, moment)}{number:016}"


def beginning(prefix: str, moment: datetime) -> str:
    """Return what all ids of the millisecond of ``moment`` begin with; 16 digits follow."""
    return Ids.least(prefix, moment)[:-16]


def sql_id(prefix: str, at: str, number: str) -> str:
    """Return the SQL for the id of a number among those of the millisecond of ``at``; both are SQL."""
    milliseconds = f"floor(extract(epoch FROM {at}) * 1000)::bigint"
    digits = " || ".join(
        f"substr('0123456789abcdefghjkmnpqrstvwxyz', (({milliseconds} >> {place}) & 31)::integer + 1, 1)"
        for place in range(45, -1, -5)
    )
    return f"'{prefix}_' || {digits} || lpad(({number})::text, 16, '0')"
