"""A shop's payments with FastAPI, SQLAlchemy and httpx, in one module: ``uvicorn bench.peers.fastapi_app.app:app``."""

import asyncio
import base64
import os
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import httpx
from fastapi import Depends, FastAPI, Header, HTTPException, Response
from pydantic import BaseModel, Field
from sqlalchemy import DateTime, String, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_DARAJA = os.environ["PEER_DARAJA"]

engine = create_async_engine(
    os.environ["PEER_DATABASE"].replace("postgresql://", "postgresql+asyncpg://"), pool_size=20, max_overflow=0
)
sessions = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    """The tables."""


class Payment(Base):
    """A payment."""

    __tablename__ = "payment"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    idempotency_key: Mapped[str] = mapped_column(String(255), unique=True)
    amount: Mapped[int]
    phone: Mapped[str] = mapped_column(String(12))
    status: Mapped[str] = mapped_column(String(20), default="pending", index=True)
    checkout_request_id: Mapped[str | None] = mapped_column(String(64), unique=True)
    receipt: Mapped[str | None] = mapped_column(String(20), unique=True)
    result_desc: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=lambda: datetime.now(UTC), index=True)
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=lambda: datetime.now(UTC))


class Asked(BaseModel):
    """The request of a shop."""

    amount: int = Field(ge=1, le=250_000)
    phone: str = Field(pattern=r"^254[17][0-9]{8}$")


class Shown(BaseModel):
    """A payment in the API."""

    id: uuid.UUID
    amount: int
    phone: str
    status: str
    provider_ref: str | None
    created_at: datetime


class Daraja:
    """One pooled client and one token."""

    def __init__(self) -> None:
        self.client = httpx.AsyncClient(
            base_url=_DARAJA, trust_env=False, limits=httpx.Limits(max_connections=200, max_keepalive_connections=200)
        )
        self._token, self._until = "", 0.0
        self._lock = asyncio.Lock()

    async def token(self) -> str:
        """Return the token, renewed before it expires."""
        async with self._lock:
            if time.monotonic() > self._until:
                answer = await self.client.get(
                    "/oauth/v1/generate?grant_type=client_credentials", auth=("consumer-key", "consumer-secret")
                )
                self._token = answer.json()["access_token"]
                self._until = time.monotonic() + 3000
            return self._token

    async def push(self, payment: Payment) -> str:
        """Send the prompt; returns the CheckoutRequestID."""
        timestamp = datetime.now(UTC).strftime("%Y%m%d%H%M%S")
        answer = await self.client.post(
            "/mpesa/stkpush/v1/processrequest",
            headers={"Authorization": f"Bearer {await self.token()}"},
            json={
                "BusinessShortCode": "174379",
                "Password": base64.b64encode(f"174379passkey{timestamp}".encode()).decode(),
                "Timestamp": timestamp,
                "TransactionType": "CustomerPayBillOnline",
                "Amount": payment.amount,
                "PartyA": payment.phone,
                "PartyB": "174379",
                "PhoneNumber": payment.phone,
                "CallBackURL": "https://shop.example/callback",
                "AccountReference": str(payment.id)[:12],
                "TransactionDesc": "Payment",
            },
        )
        return str(answer.raise_for_status().json()["CheckoutRequestID"])


daraja = Daraja()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    """Close the connections at the end."""
    yield
    await daraja.client.aclose()
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


async def session() -> AsyncGenerator[AsyncSession]:
    """Return a session for one request."""
    async with sessions() as found:
        yield found


Session = Annotated[AsyncSession, Depends(session)]


def _shown(payment: Payment) -> Shown:
    return Shown(
        id=payment.id,
        amount=payment.amount,
        phone=payment.phone,
        status=payment.status,
        provider_ref=payment.checkout_request_id,
        created_at=payment.created_at,
    )


@app.post("/create", status_code=201)
async def create(
    wanted: Asked, response: Response, db: Session, idempotency_key: Annotated[str, Header(min_length=1)]
) -> Shown:
    """Create a payment and push it."""
    payment = Payment(idempotency_key=idempotency_key, amount=wanted.amount, phone=wanted.phone)
    db.add(payment)
    try:
        await db.commit()
    except IntegrityError:
        await db.rollback()
        response.status_code = 200
        known = await db.scalar(select(Payment).where(Payment.idempotency_key == idempotency_key))
        if known is None:
            raise HTTPException(409) from None
        return _shown(known)
    payment.checkout_request_id = await daraja.push(payment)
    payment.updated_at = datetime.now(UTC)
    await db.commit()
    return _shown(payment)


@app.post("/callback")
async def callback(body: dict[str, Any], db: Session) -> dict[str, Any]:
    """Store a callback."""
    result = body["Body"]["stkCallback"]
    items = {item["Name"]: item.get("Value") for item in result.get("CallbackMetadata", {}).get("Item", [])}
    found = await db.scalar(
        select(Payment).where(Payment.checkout_request_id == result["CheckoutRequestID"]).with_for_update()
    )
    if found is None:
        raise HTTPException(404)
    if found.status == "pending":
        found.status = "completed" if result["ResultCode"] == 0 else "failed"
        found.receipt = items.get("MpesaReceiptNumber")
        found.result_desc = result["ResultDesc"]
        found.updated_at = datetime.now(UTC)
    await db.commit()
    return {"ResultCode": 0, "ResultDesc": "Accepted"}


async def make_tables() -> None:
    """Create the tables."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)


if __name__ == "__main__":
    asyncio.run(make_tables())
