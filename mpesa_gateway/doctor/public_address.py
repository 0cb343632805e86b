"""The public address: its form, its DNS name, its certificate and the proxies in front."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from ipaddress import ip_address
from urllib.parse import urlsplit

import msgspec

from mpesa_gateway.check_result import CheckContext, CheckResult, note, ok, problem, warning
from mpesa_gateway.client_ip import is_private, read_address
from mpesa_gateway.daraja.addresses import find_filtered_words, find_tunnel
from mpesa_gateway.dns import system_lookup
from mpesa_gateway.doctor import probe
from mpesa_gateway.errors import Code
from mpesa_gateway.http import self_probe
from mpesa_gateway.http.egress import check_url, is_public
from mpesa_gateway.http.envelope import Success
from mpesa_gateway.http.health import Live, Seen
from mpesa_gateway.runtime import Runtime

_SOON, _NOW = timedelta(days=21), timedelta(days=3)
"""Time before its expiry at which a certificate should have been renewed, and must be."""

_OUTSIDE = "if only this machine cannot reach it (no hairpin NAT), try from outside: curl -i"


async def check_public_address(gateway: Runtime, examination: CheckContext) -> AsyncIterator[CheckResult]:
    url = gateway.config.public_url
    for observation in (*form_result(url, examination), *await resolution_result(url, examination)):
        yield observation
    async for observation in _reach(gateway, examination):
        yield observation


def form_result(url: str, examination: CheckContext) -> Sequence[CheckResult]:
    seen: list[CheckResult] = []
    if urlsplit(url).scheme != "https":
        seen.append(
            CheckResult(
                name="address.https",
                level=examination.if_live,
                text=f"public_url is {url}: M-Pesa calls back over https only, and live credentials are refused",
                fix="put a TLS-terminating proxy in front, and set public_url to its https address",
            )
        )
    else:
        seen.append(ok("address.https", f"public_url is https: {url}"))
    if words := find_filtered_words(url):
        seen.append(
            warning(
                "address.words",
                f"public_url has {', '.join(words)} in it: M-Pesa filters such addresses, and callbacks may not arrive",
                "choose another host name or path; the gateway's own paths have none of these words",
            )
        )
    else:
        seen.append(ok("address.words", "it has none of the words that M-Pesa filters"))
    if through := find_tunnel(url):
        seen.append(
            CheckResult(
                name="address.tunnel",
                level=examination.if_live,
                text=f"public_url leads through a public tunnel ({through}), which Safaricom forbids for live",
                fix="use a host name of your own",
            )
        )
    return seen


async def resolution_result(url: str, examination: CheckContext) -> Sequence[CheckResult]:
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        check_url(f"https://{parts.netloc}/", allow_loopback=False)
    except ValueError as refusal:
        why = str(refusal).partition(": ")[0]
        return [
            CheckResult(
                name="address.public",
                level=examination.if_live,
                text=f"M-Pesa cannot reach {host}: an address {why}",
                fix="set public_url to a host name that the Internet knows",
            )
        ]
    try:
        addresses = await system_lookup(host, parts.port or 443)
    except OSError:
        return [
            CheckResult(
                name="address.public",
                level=examination.if_live,
                text=f"the name {host} could not be resolved",
                fix="make the DNS record (A, AAAA), or correct public_url",
            )
        ]
    private = [address for address in addresses if not is_public(ip_address(address.partition("%")[0]))]
    if private:
        return [
            warning(
                "address.public",
                f"seen from here {host} is {', '.join(dict.fromkeys(private))}, which the Internet cannot reach",
                f"check it from outside (dig +short {host} @1.1.1.1): M-Pesa has to reach it",
            )
        ]
    return [ok("address.public", f"{host} resolves to {', '.join(dict.fromkeys(addresses))}")]


async def _reach(gateway: Runtime, examination: CheckContext) -> AsyncIterator[CheckResult]:
    nonce = gateway.ids.token(16)
    url = gateway.url("/health/live")
    try:
        reply = await probe.get(f"{url}?challenge={self_probe.create_challenge(gateway.vault, nonce)}")
    except probe.ProbeFailed as failure:
        yield _unreached(url, failure, examination)
        return
    if reply.valid_until is not None:
        yield _certificate(reply.valid_until, examination)
    live = _read(reply.body)
    if reply.status != 200 or live is None or live.proof != self_probe.expected_proof(gateway.vault, nonce):
        yield _wrong_target(url, reply, live, examination)
        return
    yield ok("address.reached", f"{url} leads to this gateway")
    if live.seen is not None:
        yield _proxies(live.seen, examination, is_https=url.startswith("https:"))
    yield await _callback_path(gateway, examination)


def _unreached(url: str, failure: probe.ProbeFailed, examination: CheckContext) -> CheckResult:
    if failure.reason == "tls":
        return CheckResult(
            name="address.certificate",
            level=examination.if_live,
            text=f"the certificate of {url} is not trusted: {failure}",
            fix="renew it, or let the proxy send the whole chain (fullchain.pem) for this host name",
        )
    return CheckResult(
        name="address.reached",
        level=examination.if_live,
        text=f"nothing answers at {url}: {failure}",
        fix=f"start the gateway and the proxy, and open the port; {_OUTSIDE} {url}",
    )


def _certificate(until: datetime, examination: CheckContext) -> CheckResult:
    left = until - examination.now
    text = f"its TLS certificate is valid until {until:%Y-%m-%d}"
    if left < _NOW:
        fix = "renew it now: M-Pesa does not call back after its expiry"
        return problem("address.certificate", f"{text}, {left.days} days from now", fix)
    if left < _SOON:
        fix = "find out why it was not renewed automatically (certbot renew, or your proxy's log)"
        return warning("address.certificate", f"{text}, {left.days} days from now", fix)
    return ok("address.certificate", f"{text} ({left.days} days)")


def _read(body: bytes) -> Live | None:
    try:
        return msgspec.json.decode(body, type=Success[Live]).data
    except msgspec.MsgspecError:
        return None


def _wrong_target(url: str, reply: probe.Reply, live: Live | None, examination: CheckContext) -> CheckResult:
    fix = f"let the proxy pass {urlsplit(url).hostname} to this gateway, paths and query unchanged"
    if 300 <= reply.status < 400:
        text = f"{url} answers with a redirect to {reply.headers.get('location', '?')}: M-Pesa follows none"
        fix = "set public_url to where it redirects to, or stop the redirect"
    elif live is not None and live.proof is not None:
        text = f"{url} answers with the proof of another request: a cache in between stores answers"
        fix = "keep the proxy and CDN from caching what this gateway answers"
    elif live is not None:
        text = f"{url} leads to another gateway: one with another database or master key, or of an older release"
    elif reply.status == 503:
        text = f"{url} answers HTTP 503: the proxy cannot reach the gateway, or the gateway has not been started"
        fix = "start `mpesa-gateway serve`, and let the proxy pass requests to its http.host and http.port"
    elif reply.status in {401, 403}:
        text = f"{url} answers HTTP {reply.status}: a proxy in front requires a login or blocks unknown callers"
        fix = "allow every caller: the gateway checks callbacks itself"
    else:
        name = reply.headers.get("server", "no name")
        text = f"the server at {url} is not this gateway (HTTP {reply.status}, {name})"
    return CheckResult(name="address.reached", level=examination.if_live, text=text, fix=fix)


def _proxies(seen: Seen, examination: CheckContext, *, is_https: bool) -> CheckResult:
    if seen.was_forwarded and not seen.peer_is_trusted:
        peer = read_address(seen.peer)
        return CheckResult(
            name="address.proxies",
            level=examination.if_live,
            text=f"requests come through a proxy at {seen.peer}, which security.trusted_proxies does not name: every "
            "caller counts as that proxy, so live callbacks are refused, and one caller's failures block all",
            fix=f'add "{seen.peer}" to security.trusted_proxies'
            if peer is not None and is_private(peer)
            else "that address is public: its users could then pose as Safaricom. Put a proxy of your own "
            "in front that accepts requests from it only, and add that one to security.trusted_proxies",
        )
    if is_https and not seen.was_forwarded:
        return warning(
            "address.proxies",
            f"the proxy at {seen.peer} sends no X-Forwarded-For: every caller counts as {seen.client}",
            "let it set X-Forwarded-For (nginx: proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for)",
        )
    if seen.was_forwarded:
        text = f"the proxy at {seen.peer} is trusted; through it this request was seen as from {seen.client}"
        if is_https and not is_public(ip_address(seen.client)):
            fix = "if that is another proxy of yours and not this machine, add it to security.trusted_proxies"
            return note("address.proxies", f"{text}, which is a private address", fix)
        return ok("address.proxies", text)
    return ok("address.proxies", f"no proxy is in between: this request was seen as from {seen.client}")


async def _callback_path(gateway: Runtime, examination: CheckContext) -> CheckResult:
    """Send a GET to a callback address: the gateway answers 405 and stores nothing."""
    url = gateway.url("/v1/cb/stk/doctor")
    try:
        reply = await probe.get(url)
    except probe.ProbeFailed as failure:
        return _unreached(url, failure, examination)
    if reply.status == 405 and Code.METHOD_NOT_ALLOWED.value.encode() in reply.body:
        return ok("address.callbacks", "callback addresses lead to this gateway")
    return CheckResult(
        name="address.callbacks",
        level=examination.if_live,
        text=f"{url} does not lead to this gateway (HTTP {reply.status}), although /health/live does",
        fix="let the proxy pass every path to the gateway, or at least /v1/",
    )
