"""Registration of a receiver's addresses at Safaricom."""

from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.daraja.addresses import find_filtered_words, find_tunnel
from mpesa_gateway.daraja.client import DarajaClient, DarajaFault, OutcomeUnknown, Rejected
from mpesa_gateway.daraja.refusals import api_error_of
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.errors import NotFound
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.security.scopes import Caller, Env
from mpesa_gateway_c2b import tables
from mpesa_gateway_c2b.addresses import C2bAddresses
from mpesa_gateway_c2b.errors import AddressRefused, RegistrationInProgress
from mpesa_gateway_c2b.explanations import LOST, meaning_of, state_of, steps_to_remove
from mpesa_gateway_c2b.operations import REGISTER, RegistrationAnswer, UrlRegistration, Version, is_refused_version
from mpesa_gateway_c2b.schemas import C2bAddresses as AddressesView
from mpesa_gateway_c2b.schemas import C2bRegistered, C2bRemoved, C2bRequest, C2bView
from mpesa_gateway_c2b.tables import AddressRow
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import Credentials, MpesaCredentials, ReceiverOwned

log = structlog.get_logger(__name__)

KIND = "c2b"
VALIDATION_KIND = "c2b-validation"


def problem_of(public_url: str, env: Env) -> str | None:
    """Return why Safaricom would refuse addresses of ``public_url``, with the fix, or None."""
    words = find_filtered_words(public_url)
    if words:
        return (
            f"public_url contains {' and '.join(words)}, which Safaricom forbids in addresses: use another host or path"
        )
    if env == "live" and urlsplit(public_url).scheme != "https":
        return "public_url is not https, and Safaricom calls nothing else in live"
    if env == "live" and (tunnel := find_tunnel(public_url)) is not None:
        return f"public_url leads through a tunnel ({tunnel}), which Safaricom refuses in live: use a host of your own"
    return None


def _is_callers(caller: Caller, credentials: MpesaCredentials, row: Row) -> bool:
    """Merchants share the sandbox's numbers. An owner's registration replaces a former one."""
    is_owned = credentials.is_owner and not credentials.wants_owner
    return row["env"] == "sandbox" or is_owned or row["merchant_id"] == caller.merchant_id


class C2bRegistrations:
    """Registers receivers; the first accepted registration of a live receiver makes its owner."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        audit: Audit,
        daraja: DarajaClient,
        credentials: Credentials,
        callbacks: Callbacks,
        addresses: C2bAddresses,
        public_url: Callable[[str], str],
    ) -> None:
        self._db = db
        self._clock = clock
        self._audit = audit
        self._daraja = daraja
        self._credentials = credentials
        self._callbacks = callbacks
        self._addresses = addresses
        self._public_url = public_url

    async def register(self, caller: Caller, shortcode: str, wanted: C2bRequest) -> C2bRegistered:
        """Register the addresses; can be repeated.

        Raises NotFound, ReceiverOwned, AddressRefused, RegistrationInProgress, and ProviderUnavailable if nothing was
        sent or Safaricom's answer is unknown.
        """
        self._db.refuse_transaction("registering addresses")
        credentials = await self._own(caller, shortcode)
        if (problem := problem_of(self._public_url("/"), caller.env)) is not None:
            raise AddressRefused(problem)
        begun = await self._begin(caller, credentials, wanted)
        urls = self._urls(begun)
        registration = UrlRegistration(
            response_type=cast("Any", wanted.response_type),
            confirmation_url=urls.confirmation,
            validation_url=urls.validation,
        )
        try:
            version, answer = await self._call(credentials, registration, begun["version"])
        except Rejected as fault:
            answer = RegistrationAnswer("refused", fault.code, f"{fault.explained}; {fault.mitigation}")
            version = None
        except DarajaFault as fault:
            await self._not_answered(caller, credentials, begun, fault)
            raise api_error_of(fault) from None
        if not await self._may_end(caller, credentials, begun, answer):
            await self._leave(caller, credentials, begun, answer)
            raise ReceiverOwned(
                f"another merchant has registered {credentials.shortcode}, and Safaricom answered this registration "
                f"with {answer.code}: {answer.text[:500]}. If it is yours, the operator makes you its owner: "
                f"mpesa-gateway receivers move {credentials.shortcode} MERCHANT"
            )
        row = await self._end(caller, credentials, wanted, begun, version, answer)
        view = await self._view(row, credentials.shortcode)
        # A refused merchant is not shown the permanent address of the number's later owner.
        shown = None if view.state == "refused" else urls
        return C2bRegistered(addresses=shown, **{name: getattr(view, name) for name in C2bView.__struct_fields__})

    async def get(self, caller: Caller, shortcode: str) -> C2bView:
        """Raises NotFound and ReceiverOwned."""
        credentials = await self._own(caller, shortcode)
        return await self._view(await self._find(caller, credentials), credentials.shortcode)

    async def remove(self, caller: Caller, shortcode: str) -> C2bRemoved:
        """Note that the registration is to be removed. Raises NotFound and ReceiverOwned."""
        credentials = await self._own(caller, shortcode)
        row = await self._find(caller, credentials)
        async with self._db.transaction():
            values: dict[Any, Any] = {AddressRow.state: "removed", AddressRow.validation: "accept"}
            await self._db.run(AddressRow.update(values).where(AddressRow.receiver_id == row["receiver_id"]))
            await self._audit.record(
                "c2b.removed",
                merchant_id=caller.merchant_id,
                actor=caller.actor,
                subject_id=row["receiver_id"],
                env=caller.env,
                detail={"shortcode": credentials.shortcode},
            )
        self._addresses.remember_mode(row["receiver_id"], "accept")
        return C2bRemoved(shortcode=credentials.shortcode, to_do=steps_to_remove(credentials.shortcode))

    async def _own(self, caller: Caller, shortcode: str) -> MpesaCredentials:
        credentials = await self._credentials.active(caller.merchant_id, caller.env, shortcode)
        credentials.check_owner("C2B")
        return credentials

    async def _find(self, caller: Caller, credentials: MpesaCredentials) -> Row:
        row = await self._db.fetchrow(tables.OF_RECEIVER, credentials.receiver_id)
        # Without an owner, the registration is of the merchant that registered last.
        if row is None or caller.merchant_id != (row["owner_id"] or row["merchant_id"]):
            raise NotFound(
                f"C2B is not registered for {credentials.shortcode}: POST the same address to register it, and "
                "money that payers send unasked is known at once"
            )
        return row

    async def _begin(self, caller: Caller, credentials: MpesaCredentials, wanted: C2bRequest) -> Row:
        now = self._clock.now()
        token = self._addresses.create(credentials.env, credentials.receiver_id)
        async with self._db.transaction():
            row = await self._db.fetchrow(
                *tables.BEGIN.bind(
                    receiver_id=credentials.receiver_id,
                    merchant_id=caller.merchant_id,
                    env=credentials.env,
                    token=token.sealed,
                    token_digest=token.digest,
                    response_type=wanted.response_type,
                    validation=wanted.validation,
                    now=now,
                    lost_before=now - LOST,
                )
            )
            if row is None:
                raise RegistrationInProgress(
                    f"{credentials.shortcode} is being registered: wait for the answer to that request", retry_after=30
                )
            await self._audit.record(
                "c2b.registering",
                merchant_id=caller.merchant_id,
                actor=caller.actor,
                subject_id=credentials.receiver_id,
                env=caller.env,
                detail={"shortcode": credentials.shortcode, "validation": wanted.validation},
            )
        self._addresses.remember(row)
        return row

    async def _call(
        self, credentials: MpesaCredentials, registration: UrlRegistration, known: Version | None
    ) -> tuple[Version, RegistrationAnswer]:
        """Try the remembered version, then the other one, only after a refusal that may mean the wrong version."""
        first: Version = known or "v2"
        other: Version = "v1" if first == "v2" else "v2"
        try:
            return first, await self._daraja.call(REGISTER[first], credentials.daraja, registration)
        except DarajaFault as fault:
            if not is_refused_version(fault):
                raise
            refusal = fault
        try:
            return other, await self._daraja.call(REGISTER[other], credentials.daraja, registration)
        except DarajaFault as fault:
            if is_refused_version(fault):
                raise Rejected(
                    "the app has neither version of the product C2B",
                    code=refusal.code,
                    provider_message=refusal.provider_message,
                    mitigation="add M-PESA C2B to the app on Safaricom's developer portal, then wait up to an hour",
                ) from None
            raise

    async def _may_end(
        self, caller: Caller, credentials: MpesaCredentials, begun: Row, answer: RegistrationAnswer
    ) -> bool:
        """Return whether the row becomes the caller's.

        In live, the row of another merchant does so by Safaricom's acceptance. That addresses are registered already
        proves nothing, unless Safaricom refused the other merchant and no confirmation has come.
        """
        if _is_callers(caller, credentials, begun) or answer.state == "registered":
            return True
        if answer.state != "already_registered" or begun["state"] != "refused" or begun["registered_at"] is not None:
            return False
        return await self._callbacks.last_received(KIND, begun["receiver_id"]) is None

    async def _leave(
        self, caller: Caller, credentials: MpesaCredentials, begun: Row, answer: RegistrationAnswer
    ) -> None:
        async with self._db.transaction():
            await self._end_attempt(begun, {})
            await self._audit.record(
                f"c2b.{answer.state}",
                merchant_id=caller.merchant_id,
                actor=caller.actor,
                subject_id=begun["receiver_id"],
                env=caller.env,
                detail={"shortcode": credentials.shortcode, "code": answer.code, "is_of_another_merchant": True},
            )

    async def _end_attempt(self, begun: Row, values: dict[Any, Any]) -> None:
        values = {AddressRow.attempted_at: None, **values}
        await self._db.run(
            AddressRow.update(values).where(
                AddressRow.receiver_id == begun["receiver_id"], AddressRow.attempt == begun["attempt"]
            )
        )

    async def _not_answered(
        self, caller: Caller, credentials: MpesaCredentials, begun: Row, fault: DarajaFault
    ) -> None:
        """Without an answer, a known registration stays known, and another merchant's is unchanged."""
        values: dict[Any, Any] = {}
        is_known = begun["state"] == "registered" or not _is_callers(caller, credentials, begun)
        if isinstance(fault, OutcomeUnknown) and not is_known:
            values = {AddressRow.state: "unknown", AddressRow.answered_at: None}
        await self._end_attempt(begun, values)
        log.warning("c2b_registration_not_answered", receiver_id=begun["receiver_id"], problem=fault.meaning)

    async def _end(
        self,
        caller: Caller,
        credentials: MpesaCredentials,
        wanted: C2bRequest,
        begun: Row,
        version: Version | None,
        answer: RegistrationAnswer,
    ) -> Row:
        async with self._db.transaction():
            row = await self._db.fetchrow(
                *tables.END.bind(
                    receiver_id=begun["receiver_id"],
                    attempt=begun["attempt"],
                    merchant_id=caller.merchant_id,
                    state=answer.state,
                    version=version,
                    response_type=wanted.response_type,
                    validation=wanted.validation,
                    now=self._clock.now(),
                    answer_code=answer.code,
                    answer_text=answer.text[:500] or None,
                )
            )
            if row is None:
                raise RegistrationInProgress(f"{credentials.shortcode} is being registered again", retry_after=30)
            if answer.state == "registered" and not await self._credentials.accepted(credentials):
                raise ReceiverOwned(
                    f"another merchant has just become the owner of {credentials.shortcode}: only the owner can use C2B"
                )
            await self._audit.record(
                f"c2b.{answer.state}",
                merchant_id=caller.merchant_id,
                actor=caller.actor,
                subject_id=begun["receiver_id"],
                env=caller.env,
                detail={"shortcode": credentials.shortcode, "code": answer.code, "version": version},
            )
        self._addresses.remember(row)
        return row

    def _urls(self, row: Row) -> AddressesView:
        token = self._addresses.open(row).reveal()
        return AddressesView(
            confirmation=self._public_url(f"/v1/cb/{KIND}/{token}"),
            validation=self._public_url(f"/v1/cb/{VALIDATION_KIND}/{token}"),
        )

    async def _view(self, row: Row, shortcode: str) -> C2bView:
        last = await self._callbacks.last_received(KIND, row["receiver_id"])
        state = state_of(row, self._clock.now())
        kept = ("env", "version", "response_type", "answer_code", "answer_text", "answered_at")
        return C2bView(
            shortcode=shortcode,
            state=state,
            meaning=meaning_of(state, row, shortcode, last),
            registered_at=row["registered_at"],
            last_confirmation_at=last,
            validation=tables.validation_of(row),
            **{name: row[name] for name in kept},
        )
