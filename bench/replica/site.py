"""The site of the speed bench, with a replica for reads beside it."""

from typing import Any

from bench.speed.site import Site


class ReplicaSite(Site):
    """A site with a gateway that reads from the primary, and later one that reads from a replica beside it."""

    replica_url: str | None = None

    @property
    def values(self) -> dict[str, Any]:
        """The settings, as they are at this moment."""
        values = super().values
        values["database"] |= {} if self.replica_url is None else {"replica_url": self.replica_url}
        return values
