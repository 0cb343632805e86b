"""Errors that a command prints as one sentence, without a traceback."""

from mpesa_gateway.commands.session import CommandFailed
from mpesa_gateway.config import ConfigError
from mpesa_gateway.db.migrator import MigrationError
from mpesa_gateway.errors import ApiError
from mpesa_gateway.http.auth import RouteError
from mpesa_gateway.plugin import PluginError
from mpesa_gateway.security.audit import BrokenChain
from mpesa_gateway.security.sealing import UnsealError
from mpesa_gateway.single_gateway import SecondGateway
from mpesa_gateway.standalone.process import StartFailed

CONFIGURATION = (ConfigError, PluginError, RouteError)
"""Exit status 2."""

OTHERS = (CommandFailed, StartFailed, ApiError, MigrationError, SecondGateway, BrokenChain, UnsealError)
"""Exit status 1."""
