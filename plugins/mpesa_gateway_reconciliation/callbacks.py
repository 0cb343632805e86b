"""Callbacks of Pull. Safaricom does not document them: any JSON object is stored and ignored."""

from mpesa_gateway.daraja.callbacks import CallbackContent, CallbackKind
from mpesa_gateway.daraja.wire import InvalidCallback, decode_text, read_json_leniently


def _read_pull(body: bytes) -> CallbackContent:
    try:
        content = read_json_leniently(body)
    except ValueError:
        raise InvalidCallback("not JSON") from None
    if not isinstance(content, dict):
        raise InvalidCallback("not a JSON object")
    return CallbackContent("", "0", (decode_text(body),))


CALLBACKS = (
    CallbackKind(
        name="pull",
        read=_read_pull,
        event=None,
        schema={"type": "object", "description": "Of kind pull. Safaricom does not document the body; it is stored."},
    ),
)
