"""What a route's signature can ask for of the gateway that serves it: ``gateway: RuntimeDependency``."""

from typing import TypeAlias

from litestar.di import NamedDependency
from litestar.params import SkipValidation

from mpesa_gateway.runtime import Runtime

RuntimeDependency: TypeAlias = NamedDependency[SkipValidation[Runtime]]
"""Not validated: a Protocol cannot be, and the value is ours."""
