"""The maintenance job of credentials."""

from mpesa_gateway.runtime import Runtime
from mpesa_gateway_credentials.service import CredentialStore


async def wipe_retired(gateway: Runtime) -> None:
    """Erase the secrets of retired shortcodes that nothing needs any more."""
    await gateway.port(CredentialStore).wipe_retired()
