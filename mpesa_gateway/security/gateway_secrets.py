"""The gateway's random secrets, such as the API keys' pepper."""

import base64

from mpesa_gateway.config import ConfigError
from mpesa_gateway.db.engine import Database
from mpesa_gateway.ids import Ids
from mpesa_gateway.security.sealing import Sealer, UnsealError
from mpesa_gateway.security.tables import GatewaySecretRow

API_KEY_PEPPER = "api_key_pepper"
CALLBACK_TOKENS = "callback_tokens"
CURSORS = "cursors"
OPERATOR_FORMS = "operator_forms"

_NAMES = (API_KEY_PEPPER, CALLBACK_TOKENS, CURSORS, OPERATOR_FORMS)


class GatewaySecrets:
    """Opening them proves that the master key is right."""

    def __init__(self, db: Database, sealer: Sealer, ids: Ids) -> None:
        self._db = db
        self._sealer = sealer
        self._ids = ids
        self._secrets: dict[str, bytes] = {}

    async def open(self) -> None:
        """Create missing secrets. Raises ConfigError for a wrong master key."""
        for name in _NAMES:
            made = self._sealer.seal(base64.b64encode(self._ids.token(32)).decode(), aad=aad(name))
            # raw SQL: upsert - Postgres states when a secret was made.
            await self._db.execute(
                "INSERT INTO gateway_secret (name, sealed) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING", name, made
            )
        for row in await self._db.run(GatewaySecretRow.select()):
            try:
                text = self._sealer.open(row["sealed"], aad=aad(row["name"]))
            except UnsealError as problem:
                raise ConfigError(
                    f"the master key is not the one that this database was sealed with ({problem}). "
                    "Put the right key back; without it the stored credentials cannot be read"
                ) from None
            self._secrets[row["name"]] = base64.b64decode(text)

    def secret(self, name: str) -> bytes:
        """32 bytes, the same in every process."""
        return self._secrets[name]


def aad(name: str) -> tuple[str, ...]:
    return ("gateway", "kernel", name)
