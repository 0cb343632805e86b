"""Type for the ``gateway`` parameter of routes."""

from typing import TypeAlias

from litestar.di import NamedDependency
from litestar.params import SkipValidation

from mpesa_gateway.runtime import Runtime

RuntimeDependency: TypeAlias = NamedDependency[SkipValidation[Runtime]]
"""Not validated: the type is a Protocol, and the value is internal."""
