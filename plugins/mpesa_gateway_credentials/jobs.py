"""Jobs of the credentials plugin."""

from mpesa_gateway.runtime import Runtime
from mpesa_gateway_credentials.service import CredentialStore


async def wipe_retired(gateway: Runtime) -> None:
    await gateway.port(CredentialStore).wipe_retired()
