"""A buyer who has paid is texted, once, whatever the provider and the queue do meanwhile."""

from datetime import timedelta
from importlib.metadata import entry_points

import msgspec

from acme_sms.plugin import plugin
from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import SetClock
from mpesa_gateway.db.migrator import find
from mpesa_gateway.testing.fixtures import PublishedEvents
from mpesa_gateway.testing.migrations import complaints
from mpesa_gateway.testing.receiver import Receiver
from mpesa_gateway.testing.serving import Api, eventually
from mpesa_gateway_payments.events import PaymentCompleted
from mpesa_gateway_simulator.prompts import Prompts

BUYER = "254711000001"


async def state(api: Api) -> tuple[str, int]:
    """How the shop's one text stands, and after how many attempts."""
    (text,) = (await api.call("GET", "/v1/sms")).data
    return text["state"], text["attempts"]


async def becomes(api: Api, expected: tuple[str, int]) -> None:
    """Wait until the shop's one text stands so."""

    async def does() -> bool:
        return bool((await api.call("GET", "/v1/sms")).data) and await state(api) == expected

    await eventually(does)


async def test_a_buyer_who_has_paid_is_texted_once(
    shop_api: Api, provider: Receiver, published: PublishedEvents, simulator: Prompts, gateway: Gateway
) -> None:
    made = (await shop_api.pay(BUYER, 250, key="order")).data
    (event,) = await published.wait_for(PaymentCompleted)
    await becomes(shop_api, ("sent", 1))
    (text,) = provider.received
    assert text.json == {
        "to": BUYER,
        "from": "ACME",
        "text": f"Asante! KES 250.00 received, receipt {event.receipt}.",
    }
    assert text.headers["authorization"] == "Bearer key-of-the-shop"
    assert text.headers["idempotency-key"] == event.payment_id == made["id"]
    assert len(await simulator.ledger(BUYER, 10)) == 1
    # Heard again, sent again, swept again: once is enough.
    await plugin.subscribers[0].handler(event, gateway)
    for job in plugin.jobs:
        await job.fn(gateway, **({"payment_id": made["id"]} if job.cron is None else {}))
    assert len(provider.received) == 1
    assert await state(shop_api) == ("sent", 1)


async def test_a_provider_that_is_down_is_asked_again_and_at_last_given_up(
    shop_api: Api, provider: Receiver, frozen_clock: SetClock, gateway: Gateway
) -> None:
    provider.status = 503
    made = (await shop_api.pay(BUYER, key="order")).data
    await becomes(shop_api, ("owed", 1))
    # Nothing is due before its time.
    await gateway.jobs.enqueue("acme_sms.sweep")
    await plugin.jobs[0].fn(gateway, payment_id=made["id"])
    assert await state(shop_api) == ("owed", 1)
    frozen_clock.advance(timedelta(seconds=61))
    await plugin.jobs[1].fn(gateway)
    await becomes(shop_api, ("given_up", 2))
    assert {text.headers["idempotency-key"] for text in provider.received} == {made["id"]}
    assert len(provider.received) == 2


async def test_a_provider_that_comes_back_is_told(
    shop_api: Api, provider: Receiver, frozen_clock: SetClock, gateway: Gateway
) -> None:
    provider.answer = lambda _, number: 503 if number == 1 else 202
    await shop_api.pay(BUYER, key="order")
    await becomes(shop_api, ("owed", 1))
    frozen_clock.advance(timedelta(seconds=61))
    await plugin.jobs[1].fn(gateway)
    await becomes(shop_api, ("sent", 2))


async def test_who_did_not_pay_is_not_texted(shop_api: Api, provider: Receiver, published: PublishedEvents) -> None:
    made = (await shop_api.pay("254700000001", key="order")).data
    assert (await shop_api.settled(made["id"]))["status"] == "failed"
    assert published.of(PaymentCompleted) == []
    assert (await shop_api.call("GET", "/v1/sms")).data == []
    assert provider.received == []


async def test_the_key_of_the_provider_shows_itself_nowhere(gateway: Gateway) -> None:
    assert "key-of-the-shop" not in repr(msgspec.to_builtins(gateway.settings(plugin.settings), enc_hook=repr))


def test_it_is_found_by_its_one_entry_point() -> None:
    (point,) = (each for each in entry_points(group="mpesa_gateway.plugins") if each.name == "acme_sms")
    assert point.load() is plugin


def test_its_migrations_stop_nobodys_traffic() -> None:
    assert plugin.tables is not None
    assert complaints(find(plugin.name, plugin.tables.migrations)) == []
