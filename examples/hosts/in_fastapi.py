"""The theatre in FastAPI."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from examples.hosts.theatre import Theatre


class Sale(BaseModel):
    """The form of a buyer."""

    seat: int
    phone: str


def application(theatre: Theatre, prefix: str) -> FastAPI:
    """Return the theatre with its gateway mounted below ``prefix``."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with theatre.gateway.running():
            await theatre.opens()
            yield

    async def sell(sale: Sale) -> dict[str, Any]:
        return await theatre.sells(sale.seat, sale.phone)

    async def show(ticket_id: str) -> dict[str, Any]:
        found = await theatre.shows(ticket_id)
        if found is None:
            raise HTTPException(404)
        return found

    app = FastAPI(title="Theatre", lifespan=lifespan)
    app.add_api_route("/tickets", sell, methods=["POST"], status_code=201)
    app.add_api_route("/tickets/{ticket_id}", show)
    app.mount(prefix, theatre.gateway.asgi)
    return app
