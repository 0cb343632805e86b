"""Conversion of Daraja faults into API errors."""

from mpesa_gateway.daraja.client import DarajaFault, NotSent, Rejected
from mpesa_gateway.errors import ApiError, ProviderRejected, ProviderUnavailable


def api_error_of(fault: DarajaFault, subject_id: str | None = None) -> ApiError:
    """Return the error for a call that can be retried: 502 if rejected, else 503."""
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
        else f"M-Pesa did not answer ({fault.explained}): try again",
        retry_after=fault.retry_after or 5,
        provider=fault.provider,
        subject_id=subject_id,
    )
