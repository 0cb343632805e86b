"""What the table of credentials refuses, whoever asks: each rule has a statement that breaks it."""

import pytest

from tests.conftest import Town
from tests.constraints import added, refusals

UPDATE = "UPDATE provider_credentials SET %s"

CASES = {
    "provider_credentials_are_sealed": [
        UPDATE % f"{field} = 'in clear'"
        for field in ("consumer_key", "consumer_secret", "passkey", "security_credential")
    ],
    "provider_credentials_initiator_is_whole": [UPDATE % "initiator = NULL", UPDATE % "security_credential = NULL"],
    "provider_credentials_live_is_whole": [
        UPDATE % "env = 'live', nominated_number = NULL",
        UPDATE % "env = 'live', initiator = NULL, security_credential = NULL",
    ],
}


def test_every_rule_has_a_statement_that_breaks_it() -> None:
    assert set(CASES) == added("mpesa_gateway_credentials.migrations", "0002_what_always_holds.sql")


@pytest.mark.usefixtures("initiated")
async def test_the_table_refuses_what_must_not_be(town: Town) -> None:
    assert await refusals(town.gateway.db, CASES) == {}
