"""Jobs of the kernel: events and retention."""

from mpesa_gateway.db.outbox import HANDLE
from mpesa_gateway.queues import Job
from mpesa_gateway.retention import Retention
from mpesa_gateway.runtime import Runtime


async def handle_event(runtime: Runtime, *, event_id: str, subscriber: str) -> None:
    await runtime.outbox.handle(event_id, subscriber)


async def delete_expired(runtime: Runtime) -> None:
    await Retention(runtime).delete_expired()


async def sweep_events(runtime: Runtime) -> None:
    await runtime.outbox.sweep()


KERNEL_JOBS: dict[str, Job] = {
    # Handlers of third parties may block.
    HANDLE: Job(handle_event, timeout=120, queue="default"),
    "kernel.sweep_events": Job(sweep_events, timeout=30, cron="* * * * * */10", queue="maintenance"),
    # At night in East Africa; continued the next night.
    "kernel.forget": Job(delete_expired, timeout=3600, cron="17 23 * * *", queue="maintenance"),
}
