"""Forwarding of new events to a developer's machine."""

import hashlib
import hmac
from collections.abc import Collection, Sequence
from datetime import timedelta

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.dns import NameResolver
from mpesa_gateway.env import Env
from mpesa_gateway.http.egress import Egress, EgressFailed, EgressResponse
from mpesa_gateway.ids import Ids
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.gateway_secrets import CALLBACK_TOKENS, GatewaySecrets
from mpesa_gateway_webhooks import signing, tables

LOOK_BACK = timedelta(seconds=60)
"""Maximum age of a new event, whose time is set before the commit."""

BATCH = 100
"""Events per query."""

TIMEOUT = 10.0
"""Seconds that the developer's program may take to respond."""


class DevListener:
    """New events of one merchant and env, each returned once, oldest first as far as known. Writes nothing."""

    def __init__(
        self,
        merchant_id: str,
        env: Env,
        kinds: Collection[str],
        *,
        db: Database,
        clock: Clock,
        vault: GatewaySecrets,
        names: NameResolver,
    ) -> None:
        self._db = db
        self._clock = clock
        self._vault = vault
        self._merchant_id = merchant_id
        self._env = env
        self._kinds = list(kinds)
        self._seen: set[str] = set()
        self._since = Ids.least("evt", clock.now() - LOOK_BACK)
        self._egress = Egress(timeout=TIMEOUT, lookup=names)

    async def start(self) -> None:
        """Skip the existing events, and start the HTTP client."""
        await self._egress.start()
        while await self.new_events():
            continue

    async def stop(self) -> None:
        await self._egress.stop()

    @property
    def secret(self) -> Secret:
        """The signing secret, constant for the merchant."""
        text = f"listen\0{self._merchant_id}".encode()
        # Callback tokens use the same key, but begin with a kind.
        return signing.new_secret(hmac.new(self._vault.secret(CALLBACK_TOKENS), text, hashlib.sha256).digest())

    async def new_events(self) -> Sequence[Row]:
        now = self._clock.now()
        rows = await self._db.fetch(
            tables.EVENTS_SINCE, self._merchant_id, self._since, self._kinds, list(self._seen), BATCH, self._env
        )
        self._seen.update(row["event_id"] for row in rows)
        if len(rows) < BATCH:
            # Only recent events can still appear.
            self._since = max(self._since, Ids.least("evt", now - LOOK_BACK))
            self._seen = {event_id for event_id in self._seen if event_id >= self._since}
        return rows

    async def forward(self, row: Row, url: str) -> EgressResponse | EgressFailed:
        body = row["body"].encode()
        headers = signing.headers(row["event_id"], row["kind"], body, self._clock.now(), [self.secret])
        try:
            return await self._egress.post(url, body=body, headers=headers, allow_loopback=True)
        except EgressFailed as failure:
            return failure
