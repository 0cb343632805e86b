"""The type of ``gateway`` parameters."""

from typing import TypeAlias

from litestar.di import NamedDependency
from litestar.params import SkipValidation

from mpesa_gateway.runtime import Runtime

RuntimeDependency: TypeAlias = NamedDependency[SkipValidation[Runtime]]
"""A Protocol cannot be validated."""
