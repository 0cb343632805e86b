"""The maintenance job of credentials."""

from typing import TYPE_CHECKING

from mpesa_gateway_credentials.service import CredentialStore

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


async def wipe_retired(gateway: "Gateway") -> None:
    """Erase the secrets of retired shortcodes that nothing needs any more."""
    await gateway.services.get(CredentialStore).wipe_retired()
