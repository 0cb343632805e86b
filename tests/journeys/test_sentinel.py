"""Protects payments during a Sentinel failover: the primary is killed, its replica takes over, no payment is lost."""

import asyncio
import shutil
import signal
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import valkey.asyncio
from valkey.exceptions import ConnectionError as ValkeyConnectionError

from mpesa_gateway.standalone.process import free_port, launch, stop
from mpesa_gateway.standalone.valkey import valkey_binary
from mpesa_gateway.testing.receiver import receiving
from mpesa_gateway.testing.serving import eventually, shop
from tests.journeys.site import books, running_site, until_up

_PASSWORD = "opens-nothing"
_SERVICE = "till"
_BEFORE, _AFTER = 10, 20


class SentinelServers:
    """A primary, a replica and three Sentinels, all on loopback."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.primary_port, self.replica_port = free_port(), free_port()
        self.sentinel_ports = [free_port() for _ in range(3)]
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        common = f'requirepass {_PASSWORD}\nprimaryauth {_PASSWORD}\nsave ""\nrepl-diskless-sync-delay 0\n'
        self.primary = self._launch("primary", self.primary_port, common)
        self._launch("replica", self.replica_port, f"{common}replicaof 127.0.0.1 {self.primary_port}\n")
        for number, port in enumerate(self.sentinel_ports):
            watch = (
                f"sentinel monitor {_SERVICE} 127.0.0.1 {self.primary_port} 2\n"
                f"sentinel auth-pass {_SERVICE} {_PASSWORD}\n"
                f"sentinel down-after-milliseconds {_SERVICE} 2000\n"
                f"sentinel failover-timeout {_SERVICE} 5000\n"
            )
            self._launch(f"sentinel-{number}", port, watch, ["--sentinel"])

    def _launch(self, name: str, port: int, settings: str, arguments: Sequence[str] = ()) -> "subprocess.Popen[bytes]":
        home = self._folder / name
        home.mkdir()
        (home / "conf").write_text(f'bind 127.0.0.1\nport {port}\ndir "{home}"\n{settings}', encoding="utf-8")
        with (home / "log").open("wb") as output:
            command = [str(valkey_binary()), str(home / "conf"), *arguments]
            process = launch(command, output=output, death_signal=signal.SIGKILL, cwd=home)
        self.running.append(process)
        return process

    async def is_watched(self) -> bool:
        """Return True once each Sentinel knows the replica and the others, and the replica is in sync."""
        for port in self.sentinel_ports:
            client: Any = valkey.asyncio.Valkey(port=port)
            try:
                state = (await client.sentinel_masters()).get(_SERVICE, {})
            except ValkeyConnectionError:
                return False
            finally:
                await client.aclose()
            if (state.get("num-slaves"), state.get("num-other-sentinels")) != (1, 2):
                return False
        return (await self.replication())["master_link_status"] == "up"

    async def replication(self) -> dict[str, object]:
        """Return the replica's replication info."""
        client: Any = valkey.asyncio.Valkey(port=self.replica_port, password=_PASSWORD)
        try:
            found: dict[str, object] = await client.info("replication")
            return found
        finally:
            await client.aclose()


@contextmanager
def sentinel_servers(folder: Path) -> Generator[SentinelServers]:
    """Yield five processes and stop them at the end of the block."""
    home = folder / "valkeys"
    home.mkdir()
    found = SentinelServers(home)
    try:
        found.start()
        yield found
    finally:
        for process in found.running:
            stop(process, (signal.SIGTERM, signal.SIGKILL), 10)
        shutil.rmtree(home)


async def test_sentinel_failover_under_load_loses_no_payment(database_url: str, tmp_path: Path) -> None:
    with (
        sentinel_servers(tmp_path) as valkeys,
        # No server listens on this port: only the Sentinels know Valkey's address.
        running_site(database_url, f"valkey://:{_PASSWORD}@127.0.0.1:1/0", tmp_path) as site,
    ):
        site.values["valkey"] |= {
            "sentinels": [f"127.0.0.1:{port}" for port in valkeys.sentinel_ports],
            "service": _SERVICE,
        }
        await eventually(valkeys.is_watched, 60)
        site.start_simulator()
        site.start_api(0)
        site.start_worker()
        await asyncio.gather(
            until_up(f"{site.bases[0]}/health/ready", 120), until_up(f"{site.simulator}/health/live", 120)
        )
        async with (
            receiving() as receiver,
            books(site) as gateway,
            shop(gateway, site.bases[0], webhook_url=receiver.url) as api,
        ):
            made: list[str] = []

            async def pay(number: int) -> None:
                answer = await api.pay("254711000050", 100 + number, key=f"pay-{number}")
                assert answer.status == 201
                made.append(answer.data["id"])

            await asyncio.gather(*map(pay, range(_BEFORE)))
            under_way = asyncio.gather(*map(pay, range(_BEFORE, _AFTER)))
            valkeys.primary.kill()
            valkeys.primary.wait()
            await under_way

            async def is_promoted() -> bool:
                return (await valkeys.replication())["role"] == "master"

            while not await is_promoted():
                # A shop does not notice and continues.
                await pay(len(made))
                await asyncio.sleep(0.2)
            await pay(len(made))
            for payment_id in made:
                await api.settled(payment_id, "completed", patience=120)
            await receiver.wait_for(len(made), patience=120)
            assert {webhook.json["data"]["payment_id"] for webhook in receiver.received} == set(made)
            assert await gateway.db.fetchval("SELECT count(*) FROM sim_push") == len(made) == len(set(made))
            assert (await gateway.valkey.info("server"))["tcp_port"] == valkeys.replica_port
            # The worker sends heartbeats to the new primary.
            await until_up(f"{site.bases[0]}/health/ready", 60)
