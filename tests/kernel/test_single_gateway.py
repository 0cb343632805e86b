"""Protects the rule of one gateway per process; gateways on one database never share transactions."""

from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.security.tables import MerchantRow
from mpesa_gateway.single_gateway import SecondGateway


async def test_gateway_start_beside_one_on_another_schema_is_refused(values: dict[str, Any]) -> None:
    second = Gateway(GatewayConfig.from_values(values | {"database": values["database"] | {"schema": "second"}}))
    async with Gateway(GatewayConfig.from_values(values)).running() as first:
        with pytest.raises(SecondGateway, match="start each gateway in a process of its own"):
            await second.start()
        assert not second.is_running
        assert not second.db.is_running
        made = await first.merchants.create("Still served", actor="test")
        assert await first.merchants.get(made.merchant_id) == made
    async with second.running():
        assert (await second.merchants.page(10)).rows == []


async def test_gateways_of_one_database_use_their_own_transactions(values: dict[str, Any]) -> None:
    first, second = (Gateway(GatewayConfig.from_values(values)) for _ in range(2))
    async with first.running(), second.running():
        async with first.db.transaction():
            made = await first.merchants.create("Seen by both", actor="test")
            assert await second.db.run(MerchantRow.count()) == 0
            assert await MerchantRow.count() == 1
        assert await second.merchants.get(made.merchant_id) == made


async def test_query_without_a_pool_opens_no_connection(values: dict[str, Any]) -> None:
    async with Gateway(GatewayConfig.from_values(values)).running() as gateway:
        pool, gateway.db.engine.pool = gateway.db.engine.pool, None
        try:
            with pytest.raises(RuntimeError):
                await gateway.db.run(MerchantRow.count())
            with pytest.raises(RuntimeError):
                await gateway.db.fetchval("SELECT count(*) FROM merchant")
        finally:
            gateway.db.engine.pool = pool
        assert await gateway.db.run(MerchantRow.count()) == 0
