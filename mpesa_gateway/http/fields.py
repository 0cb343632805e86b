"""Common response fields, described for OpenAPI; not validated."""

from typing import Annotated, Literal

from msgspec import Meta

_ID = "[0-9a-z]{26}"


def id_field(prefix: str) -> Meta:
    """Describe an identifier; annotates ``str``."""
    return Meta(extra_json_schema={"pattern": f"^{prefix}_{_ID}$", "examples": [example_id(prefix)]})


def named(name: str) -> Meta:
    """Name an enumeration, so that generated clients have one type for it."""
    return Meta(title=name)


def example_id(prefix: str) -> str:
    return f"{prefix}_01jdk3v8rc4x9m2q7ztbn5wgae"


MerchantId = Annotated[str, id_field("mer")]
EventId = Annotated[str, id_field("evt")]
KeyId = Annotated[str, id_field("key")]

Amount = Annotated[str, Meta(extra_json_schema={"pattern": r"^[0-9]+\.[0-9]{2}$", "examples": ["500.00"]})]

Phone = Annotated[str, Meta(extra_json_schema={"pattern": "^254[17][0-9]{8}$", "examples": ["254708374149"]})]
Receipt = Annotated[str, Meta(extra_json_schema={"pattern": "^[A-Z0-9]{6,20}$", "examples": ["TKN4A1B2C3"]})]
Masked = Annotated[str, Meta(extra_json_schema={"examples": ["****ef12"]})]
"""The last four characters."""

Currency = Annotated[Literal["KES"], named("Currency")]
Provider = Annotated[Literal["mpesa"], named("Provider")]
# Plain booleans: some generators fail on ``const``.
Yes = Annotated[bool, Meta(extra_json_schema={"examples": [True]})]
No = Annotated[bool, Meta(extra_json_schema={"examples": [False]})]


def path_id(name: str, prefix: str) -> dict[str, dict[str, object]]:
    """Describe a path's identifier, for ``described``."""
    return {name: {"pattern": f"^{prefix}_{_ID}$", "examples": [example_id(prefix)]}}
