"""What a call to Daraja that brought no acknowledgement ends in: refused, never sent, or unknown."""


class DarajaFault(Exception):
    """A call to Daraja that brought no acknowledgement. Its text holds no secrets and no phone numbers."""

    def __init__(
        self,
        meaning: str,
        *,
        code: str | None = None,
        provider_message: str | None = None,
        mitigation: str = "",
        retry_after: int | None = None,
        retryable: bool = False,
        failure_reason: str = "other",
    ) -> None:
        super().__init__(f"{code}: {meaning}" if code else meaning)
        self.meaning = meaning
        self.code = code
        self.provider_message = provider_message
        self.mitigation = mitigation
        self.retry_after = retry_after
        self.retryable = retryable
        self.failure_reason = failure_reason

    @property
    def explained(self) -> str:
        """The meaning, followed by M-Pesa's own text where it sent one."""
        return f"{self.meaning}: {self.provider_message}" if self.provider_message else self.meaning

    @property
    def provider(self) -> dict[str, str] | None:
        """Daraja's own code and message, and what to do, for the answer to the merchant."""
        if self.code is None:
            return None
        return {"errorCode": self.code, "errorMessage": self.provider_message or "", "mitigation": self.mitigation}


class NotSent(DarajaFault):
    """Nothing was sent or done: the same request may be made again. ``retry_after`` is in seconds."""


class Rejected(DarajaFault):
    """Daraja refused for good: nothing was done, and the same request will be refused again."""


class OutcomeUnknown(DarajaFault):
    """It may have been done. Never repeat it; ask."""


class StillPending(OutcomeUnknown):
    """The push that was asked about has not ended."""
