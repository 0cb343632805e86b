"""Fields that many answers have, each described once for the OpenAPI document; nothing of it is checked."""

from typing import Annotated, Literal

from msgspec import Meta

_ID = "[0-9a-z]{26}"


def id_field(prefix: str) -> Meta:
    """Describe a field that holds such an identifier, for the document: it annotates ``str``."""
    return Meta(extra_json_schema={"pattern": f"^{prefix}_{_ID}$", "examples": [example_id(prefix)]})


def named(name: str) -> Meta:
    """The name of a set of words: the OpenAPI document has one schema of it, and generated clients one type."""
    return Meta(title=name)


def example_id(prefix: str) -> str:
    """An identifier with this prefix, for examples."""
    return f"{prefix}_01jdk3v8rc4x9m2q7ztbn5wgae"


MerchantId = Annotated[str, id_field("mer")]
EventId = Annotated[str, id_field("evt")]
KeyId = Annotated[str, id_field("key")]

Amount = Annotated[str, Meta(extra_json_schema={"pattern": r"^[0-9]+\.[0-9]{2}$", "examples": ["500.00"]})]
"""Money in KES."""

Phone = Annotated[str, Meta(extra_json_schema={"pattern": "^254[17][0-9]{8}$", "examples": ["254708374149"]})]
Receipt = Annotated[str, Meta(extra_json_schema={"pattern": "^[A-Z0-9]{6,20}$", "examples": ["TKN4A1B2C3"]})]
Masked = Annotated[str, Meta(extra_json_schema={"examples": ["****ef12"]})]
"""A secret by its last four characters."""

Currency = Annotated[Literal["KES"], named("Currency")]
Provider = Annotated[Literal["mpesa"], named("Provider")]
# Plain booleans: generators make a type of a ``const`` that the very answer does not fit.
Yes = Annotated[bool, Meta(extra_json_schema={"examples": [True]})]
No = Annotated[bool, Meta(extra_json_schema={"examples": [False]})]


def path_id(name: str, prefix: str) -> dict[str, dict[str, object]]:
    """For a route's ``described``: the parameter of its path that is such an identifier."""
    return {name: {"pattern": f"^{prefix}_{_ID}$", "examples": [example_id(prefix)]}}
