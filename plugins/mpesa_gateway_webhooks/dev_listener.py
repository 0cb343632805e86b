"""Tells a developer's own machine of events as they happen, beside the merchant's endpoint and without touching it."""

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
"""How much later than its time an event may be seen: it is stamped before its transaction is committed."""

BATCH = 100
"""Events that one look takes."""

TIMEOUT = 10.0
"""Seconds that the developer's program may take to answer, as an endpoint may."""


class DevListener:
    """One merchant's events of one env from now on, each once, in the order of their times as far as they are known.

    It only reads: deliveries, their attempts and the endpoint stay as they are. ``kinds`` lets only these through.
    """

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
        """Take what has happened so far as known, and open the way out."""
        await self._egress.start()
        while await self.new_events():
            continue

    async def stop(self) -> None:
        """Close the way out."""
        await self._egress.stop()

    @property
    def secret(self) -> Secret:
        """What forwarded events are signed with: the merchant's own, the same in every run, and no endpoint's."""
        text = f"listen\0{self._merchant_id}".encode()
        # Tokens of callbacks are MACs under the same key, and begin with a kind of callback.
        return signing.new_secret(hmac.new(self._vault.secret(CALLBACK_TOKENS), text, hashlib.sha256).digest())

    async def new_events(self) -> Sequence[Row]:
        """Events that no look has seen yet, the oldest first; BATCH at most."""
        now = self._clock.now()
        rows = await self._db.fetch(
            tables.EVENTS_SINCE, self._merchant_id, self._since, self._kinds, list(self._seen), BATCH, self._env
        )
        self._seen.update(row["event_id"] for row in rows)
        if len(rows) < BATCH:
            # Everything committed by now has been seen: only what was stamped lately may still turn up.
            self._since = max(self._since, Ids.least("evt", now - LOOK_BACK))
            self._seen = {event_id for event_id in self._seen if event_id >= self._since}
        return rows

    async def forward(self, row: Row, url: str) -> EgressResponse | EgressFailed:
        """Send an event to the developer's address once, with the headers of a real webhook."""
        body = row["body"].encode()
        headers = signing.headers(row["event_id"], row["kind"], body, self._clock.now(), [self.secret])
        try:
            return await self._egress.post(url, body=body, headers=headers, allow_loopback=True)
        except EgressFailed as failure:
            return failure
