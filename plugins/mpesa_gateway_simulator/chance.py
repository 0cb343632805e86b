"""The simulator's chance: the machine's own, or a sequence that a seed decides, the same in every run."""

import hashlib
from typing import TYPE_CHECKING

from mpesa_gateway.ids import base32
from mpesa_gateway_simulator.settings import SimulatorSettings

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


class Chance:
    """Random bytes. With a seed, the n-th draw since the last reset is always the same."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._seed = gateway.settings(SimulatorSettings).seed

    async def draw(self, size: int) -> bytes:
        """``size`` bytes, 32 at most."""
        turned = await self._gateway.db.fetchval("SELECT value FROM sim_knob WHERE name = 'seed'")
        seed = self._seed if turned is None else int(turned)
        if seed is None:
            return self._gateway.ids.token(size)
        number = await self._gateway.db.fetchval("SELECT nextval('sim_chance')")
        return hashlib.sha256(f"{seed}|{number}".encode()).digest()[:size]

    async def letters(self, length: int) -> str:
        """Lower-case letters and digits, 16 at most."""
        return base32(int.from_bytes(await self.draw(10), "big"), length)

    async def receipt(self) -> str:
        """Ten capitals and digits, such as TKN4A1B2C3."""
        return (await self.letters(10)).upper()

    async def share(self) -> float:
        """A number from 0 to 1."""
        return int.from_bytes(await self.draw(4), "big") / 2**32
