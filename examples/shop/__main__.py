"""Opens the shop on servers of its own and simulated phones: `python -m examples.shop [FOLDER]`."""

import socket
import sys
from pathlib import Path

import uvicorn

from examples.shop.shop import Orders, application
from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.security.scopes import Caller
from mpesa_gateway.security.sealing import generate
from mpesa_gateway.standalone.data_folder import DataFolder
from mpesa_gateway.standalone.process import free_port, write_private
from mpesa_gateway_credentials.schemas import MpesaFields, SetProvider
from mpesa_gateway_credentials.service import CredentialStore

SANDBOX = MpesaFields(
    env="sandbox",
    consumer_key="a-consumer-key-of-nobody",
    consumer_secret="a-consumer-secret-of-nobody",  # noqa: S106 - the simulator takes any
    passkey="bfb279f9aa9bdbcf158e97dd71a467cd2e0c893059b10f78e6b72ada1ed2c919",
    shortcode="174379",
)
"""The sandbox's published shortcode and passkey; the simulator takes any key and secret."""


def settings(folder: Path, base: str, database_url: str, valkey_url: str) -> GatewayConfig:
    """A gateway mounted in the shop, which works its own queue and is its own M-Pesa."""
    key = folder / "master.key"
    if not key.exists():
        write_private(key, generate())
    return GatewayConfig.from_values(
        {
            "plugins": ["credentials", "callbacks", "transactions", "payments", "webhooks", "simulator"],
            "public_url": f"{base}/payments",
            "database": {"url": database_url},
            "valkey": {"url": valkey_url},
            "security": {"master_key": key.read_text(encoding="ascii").strip()},
            "worker": {"in_process": True},
            "daraja": {"sandbox_url": f"{base}/payments/simulator"},
            "simulator": {"callback_delay": 2.0},
        }
    )


async def our_merchant(gateway: Gateway) -> str:
    """The shop as the gateway knows it, made and given its credentials the first time."""
    known = (await gateway.merchants.page(1)).rows
    merchant = known[0] if known else await gateway.merchants.create("Duka", actor="shop")
    caller = Caller(merchant.merchant_id, "", frozenset(), "sandbox", by="shop")
    await gateway.port(CredentialStore).store(caller, SetProvider(provider="mpesa", mpesa=SANDBOX))
    return merchant.merchant_id


class Server(uvicorn.Server):
    """uvicorn's server, which says where the shop is once it is open."""

    def __init__(self, config: uvicorn.Config, base: str) -> None:
        super().__init__(config)
        self._base = base

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application and listen."""
        await super().startup(sockets)
        if self.started:
            print(f"The shop is open: {self._base}/", flush=True)


def main(folder: Path) -> None:
    """Serve until Ctrl-C."""
    standalone = DataFolder(folder)
    try:
        standalone.start()
        port = free_port(8000)
        base = f"http://127.0.0.1:{port}"
        gateway = Gateway(settings(standalone.data_dir, base, standalone.postgres.url, standalone.valkey.url))
        app = application(gateway, Orders(standalone.data_dir / "orders.sqlite"), our_merchant)
        config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", proxy_headers=False)
        Server(config, base).run()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        standalone.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data"))
