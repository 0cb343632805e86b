"""Simulates C2B registration: one pair of addresses for each shortcode."""

from typing import Any

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Found
from mpesa_gateway_simulator.c2b_bodies import Version
from mpesa_gateway_simulator.c2b_requests import read_c2b_registration
from mpesa_gateway_simulator.controls import Controls
from mpesa_gateway_simulator.results import AckLost
from mpesa_gateway_simulator.seeded_random import SeededRandom
from mpesa_gateway_simulator.settings import SimulatorSettings
from mpesa_gateway_simulator.tables import C2bRegistrationRow
from mpesa_gateway_simulator.validation import Fault, named_fault


class C2bRegistrations:
    """The registered addresses."""

    def __init__(
        self, *, db: Database, clock: Clock, settings: SimulatorSettings, controls: Controls, chance: SeededRandom
    ) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings
        self._controls = controls
        self._chance = chance

    async def register(self, version: Version, body: dict[str, Any]) -> dict[str, Any]:
        """Register addresses, in the sandbox as often as asked, else once. Raises Fault and AckLost."""
        habit = await self._controls.habit("c2bregister")
        if habit in {"only_v1", "only_v2"} and not habit.endswith(version):
            raise named_fault("401.003.01")
        wanted = read_c2b_registration(body, is_live=self._settings.c2b_live)
        if habit == "internal_error":
            raise named_fault("500.003.1001")
        if habit == "held_by_broker":
            raise Fault(500, "500.003.1001", "Duplicate notification info, SP ID 107031")
        row = C2bRegistrationRow(
            shortcode=wanted.shortcode,
            version=version,
            response_type=wanted.response_type,
            confirmation_url=wanted.confirmation_url,
            validation_url=wanted.validation_url,
            registered_at=self._clock.now(),
        )
        insert = C2bRegistrationRow.insert(row)
        if self._settings.c2b_live or habit.startswith("already_"):
            is_registered = await self._db.run(insert.on_conflict(action="DO NOTHING"))
        else:
            is_registered = await self._db.run(
                insert.on_conflict(
                    target=C2bRegistrationRow.shortcode,
                    action="DO UPDATE",
                    values=[
                        C2bRegistrationRow.version,
                        C2bRegistrationRow.response_type,
                        C2bRegistrationRow.confirmation_url,
                        C2bRegistrationRow.validation_url,
                        C2bRegistrationRow.registered_at,
                    ],
                )
            )
        if not is_registered and habit == "already_without_code":
            return {"ResponseDescription": "Validation and Confirmation URLs are already registered"}
        if not is_registered:
            raise Fault(500, "500.003.1001", "Urls are already registered.")
        if habit == "ack_lost":
            raise AckLost
        return {
            # Daraja's spelling.
            "OriginatorCoversationID": await self._chance.identifier(),
            "ResponseCode": "00000000" if habit == "code_zeros" else "0",
            "ResponseDescription": "Success",
        }

    async def find(self, *shortcodes: str) -> Found | None:
        """Return the registration of the first of these numbers that has one."""
        rows = await self._db.run(
            C2bRegistrationRow.select().where(C2bRegistrationRow.shortcode.is_in(list(shortcodes)))
        )
        found = {row["shortcode"]: row for row in rows}
        return next((found[shortcode] for shortcode in shortcodes if shortcode in found), None)

    async def forget(self, shortcode: str) -> None:
        await self._db.run(C2bRegistrationRow.delete().where(C2bRegistrationRow.shortcode == shortcode))
