"""The theatre in Litestar, with the gateway as a Litestar plugin."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from litestar import Litestar, get, post
from litestar.exceptions import NotFoundException
from litestar.params import FromPath, JSONBody

from examples.hosts.theatre import Theatre
from mpesa_gateway.litestar_host import GatewayPlugin


@dataclass
class Sale:
    """The form of a buyer."""

    seat: int
    phone: str


def application(theatre: Theatre, prefix: str) -> Litestar:
    """Return the theatre with its gateway mounted below ``prefix``."""

    @asynccontextmanager
    async def opening(_: Litestar) -> AsyncGenerator[None]:
        # Litestar enters plugins first: the gateway is running here, and stops after this.
        await theatre.opens()
        yield

    @post("/tickets")
    async def sell(data: JSONBody[Sale]) -> dict[str, Any]:
        return await theatre.sells(data.seat, data.phone)

    @get("/tickets/{ticket_id:str}")
    async def show(ticket_id: FromPath[str]) -> dict[str, Any]:
        found = await theatre.shows(ticket_id)
        if found is None:
            raise NotFoundException
        return found

    return Litestar(
        [sell, show],
        plugins=[GatewayPlugin(theatre.gateway, prefix)],
        lifespan=[opening],
        # Litestar would configure the root logger, which belongs to the theatre.
        logging_config=None,
    )
