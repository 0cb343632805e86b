"""The kernel's own jobs: the outbox's events, and what is deleted at night."""

from mpesa_gateway.db.outbox import HANDLE
from mpesa_gateway.queues import Job
from mpesa_gateway.retention import Retention
from mpesa_gateway.runtime import Runtime


async def handle_event(runtime: Runtime, *, event_id: str, subscriber: str) -> None:
    """Run one subscriber on one event."""
    await runtime.outbox.handle(event_id, subscriber)


async def delete_expired(runtime: Runtime) -> None:
    """Delete what has been kept long enough."""
    await Retention(runtime).delete_expired()


async def sweep_events(runtime: Runtime) -> None:
    """Hand owed events to their subscribers again."""
    await runtime.outbox.sweep()


KERNEL_JOBS: dict[str, Job] = {
    # Handlers of a host and of third parties may wait for anything: they run beside their own kind only.
    HANDLE: Job(handle_event, timeout=120, queue="default"),
    "kernel.sweep_events": Job(sweep_events, timeout=30, cron="* * * * * */10", queue="maintenance"),
    # In the middle of the night in East Africa. What an hour is not enough for is left to the next night.
    "kernel.forget": Job(delete_expired, timeout=3600, cron="17 23 * * *", queue="maintenance"),
}
