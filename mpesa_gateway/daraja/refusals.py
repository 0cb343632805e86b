"""How a call to Daraja that brought nothing becomes an answer to the merchant."""

from mpesa_gateway.daraja.client import DarajaFault, NotSent, Rejected
from mpesa_gateway.errors import ApiError, ProviderRejected, ProviderUnavailable


def api_error_of(fault: DarajaFault, subject_id: str | None = None) -> ApiError:
    """Return the refusal for a call that may safely be made again: 502 when Daraja said no, else 503.

    ``subject_id`` is the payment or refund that the refused request leaves behind.
    """
    if isinstance(fault, Rejected):
        return ProviderRejected(
            f"M-Pesa refused the request: {fault.explained}; {fault.mitigation}",
            retryable=fault.retryable,
            provider=fault.provider,
            subject_id=subject_id,
        )
    return ProviderUnavailable(
        f"nothing was sent ({fault.explained}): try again"
        if isinstance(fault, NotSent)
        else f"M-Pesa gave no answer ({fault.explained}): try again",
        retry_after=fault.retry_after or 5,
        provider=fault.provider,
        subject_id=subject_id,
    )
