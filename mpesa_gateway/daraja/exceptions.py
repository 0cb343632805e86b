"""Errors of Daraja calls without an acknowledgement."""


class DarajaFault(Exception):
    """No acknowledgement. The text contains no secrets and no phone numbers."""

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
        return f"{self.meaning}: {self.provider_message}" if self.provider_message else self.meaning

    @property
    def provider(self) -> dict[str, str] | None:
        if self.code is None:
            return None
        return {"errorCode": self.code, "errorMessage": self.provider_message or "", "mitigation": self.mitigation}


class NotSent(DarajaFault):
    """Nothing was executed: a retry is safe. ``retry_after`` is in seconds."""


class Rejected(DarajaFault):
    """Daraja rejected the request: nothing was executed, and a retry fails too."""


class OutcomeUnknown(DarajaFault):
    """The request may have been executed: query its status, do not retry."""


class StillPending(OutcomeUnknown):
    """The push is still pending."""
