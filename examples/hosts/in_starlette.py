"""The theatre in Starlette."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from examples.hosts.theatre import Theatre


def application(theatre: Theatre, prefix: str) -> Starlette:
    """Return the theatre with its gateway mounted below ``prefix``."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        async with theatre.gateway.running():
            await theatre.opens()
            yield

    async def sell(request: Request) -> JSONResponse:
        body = await request.json()
        return JSONResponse(await theatre.sells(int(body["seat"]), str(body["phone"])), 201)

    async def show(request: Request) -> JSONResponse:
        found = await theatre.shows(request.path_params["ticket_id"])
        return JSONResponse(found, 404 if found is None else 200)

    routes = [
        Route("/tickets", sell, methods=["POST"]),
        Route("/tickets/{ticket_id}", show),
        Mount(prefix, app=theatre.gateway.asgi),
    ]
    return Starlette(routes=routes, lifespan=lifespan)
