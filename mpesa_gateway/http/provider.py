"""How a call to Daraja that brought nothing becomes an answer to the merchant."""

from mpesa_gateway.daraja.client import DarajaFault, Rejected
from mpesa_gateway.errors import ProviderRejected, ProviderUnavailable, Refused


def refusal_of(fault: DarajaFault) -> Refused:
    """The refusal for a fault of a call that may safely be made again: 502 when Daraja said no, else 503."""
    if isinstance(fault, Rejected):
        return ProviderRejected(
            f"M-Pesa refused the request: {fault.mitigation}", retryable=fault.retryable, provider=fault.provider
        )
    return ProviderUnavailable(
        f"M-Pesa gave no answer ({fault.meaning}): try again",
        retry_after=fault.retry_after or 5,
        provider=fault.provider,
    )
