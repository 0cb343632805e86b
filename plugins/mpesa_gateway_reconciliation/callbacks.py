"""Callbacks of Pull. Safaricom does not document them: any JSON object is stored and ignored."""

from mpesa_gateway.daraja.callbacks import CallbackContent, CallbackKind
from mpesa_gateway.daraja.wire import decode_text, read_object


def _read_pull(body: bytes) -> CallbackContent:
    read_object(body)
    return CallbackContent("", "0", (decode_text(body),))


CALLBACKS = (
    CallbackKind(
        name="pull",
        read=_read_pull,
        event=None,
        schema={"type": "object", "description": "Of kind pull. Safaricom does not document the body; it is stored."},
    ),
)
