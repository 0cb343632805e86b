"""The set-up checklist of a merchant in one env: facts from Postgres, each with its next action."""

import asyncio
from dataclasses import dataclass

from mpesa_gateway.env import Env
from mpesa_gateway.ops_contract import PageRequest, SetupState, SetupStep
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_ops.page_registry import PageRegistry


@dataclass(frozen=True)
class ShownStep:
    """``is_next``: the first step that is not done. ``may_act``: the visitor may use its button."""

    title: str
    state: SetupState
    is_next: bool
    may_act: bool


async def read_checklist(visit: PageRequest, merchant_id: str) -> list[ShownStep] | None:
    """Return the steps of the merchant in the visit's env; None if all are done."""
    registry = visit.gateway.port(PageRegistry)
    states = await asyncio.gather(*(step.read(visit.gateway, merchant_id, visit.env) for step in registry.setup))
    proven = {name for step, state in zip(registry.setup, states, strict=True) if state.is_done for name in step.proves}
    shown: list[ShownStep] = []
    for step, state in zip(registry.setup, states, strict=True):
        is_done = state.is_done or step.name in proven
        known = SetupState(is_done=True, text=state.text if state.is_done else "") if is_done else state
        is_next = not is_done and all(each.state.is_done for each in shown)
        may_act = bool(known.action) and registry.may_use(visit, known.to, is_post=known.is_post)
        shown.append(ShownStep(step.title, known, is_next, may_act))
    return None if all(each.state.is_done for each in shown) else shown


async def _merchant(gateway: Runtime, merchant_id: str, _: Env) -> SetupState:
    found = await gateway.merchants.require(merchant_id)
    return SetupState(is_done=found.is_active, text=found.name if found.is_active else f"{found.name} is deactivated")


async def _api_key(gateway: Runtime, merchant_id: str, env: Env) -> SetupState:
    now = gateway.clock.now()
    usable = [
        key
        for key in await gateway.api_keys.list(merchant_id)
        if key.env == env and key.revoked_at is None and (key.expires_at is None or key.expires_at > now)
    ]
    if usable:
        return SetupState(is_done=True, text=f"{usable[-1].name}")
    return SetupState(
        is_done=False,
        text=f"The merchant's system cannot call the API: it has no {env} key.",
        action="Create API key",
        to=f"merchants/{merchant_id}?new=key#keys-of",
    )


STEPS = (
    SetupStep(name="merchant", title="Merchant", order=10, read=_merchant),
    SetupStep(name="key", title="API key", order=60, read=_api_key),
)
