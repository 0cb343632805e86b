"""Protects Safaricom's certificates: both encodings, refusals in plain words, encryption and signatures."""

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from mpesa_gateway.config import DarajaConfig
from mpesa_gateway.daraja.certificates import CertificateError, certificate_for, describe, read_certificate
from mpesa_gateway.secret import Secret
from tests.certificates import issue, issue_for_another_kind_of_key


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_certificate_encrypt_is_decrypted_by_safaricoms_key_and_differs_each_time(
    encoding: Encoding, tmp_path: Path
) -> None:
    issued = issue(tmp_path / "a.cer", encoding=encoding)
    certificate = read_certificate(issued.path)
    first, second = (certificate.encrypt(Secret("Safaricom999!*!")).reveal() for _ in range(2))
    assert issued.decrypt(first) == issued.decrypt(second) == "Safaricom999!*!"
    assert first != second
    assert len(first) == 344


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_certificate_with_a_byte_order_mark_is_read(encoding: str, tmp_path: Path) -> None:
    issued = issue(tmp_path / "a.cer", encoding=Encoding.PEM)
    issued.path.write_bytes(issued.path.read_text().encode(encoding))
    assert issued.decrypt(read_certificate(issued.path).encrypt(Secret("word")).reveal()) == "word"


def test_certificate_for_each_env_is_its_own(tmp_path: Path) -> None:
    sandbox, live = issue(tmp_path / "sandbox.cer"), issue(tmp_path / "live.cer")
    config = DarajaConfig(sandbox_certificate=str(sandbox.path), live_certificate=str(live.path))
    for env, mine, other in (("sandbox", sandbox, live), ("live", live, sandbox)):
        sealed = certificate_for(config, env).encrypt(Secret("password")).reveal()  # type: ignore[arg-type]
        assert mine.decrypt(sealed) == "password"
        # Python decrypts with a wrong key to random bytes, without an error.
        assert _read_or_none(other, sealed) != "password"


def _read_or_none(issued: object, sealed: str) -> str | None:
    try:
        return issued.decrypt(sealed)  # type: ignore[attr-defined,no-any-return]
    except ValueError:
        return None


def test_certificate_that_cannot_be_used_is_refused_with_its_name_and_the_fix(tmp_path: Path) -> None:
    junk, elliptic = tmp_path / "junk.cer", tmp_path / "elliptic.cer"
    junk.write_text("-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----")
    issue_for_another_kind_of_key(elliptic)
    for path, word in ((tmp_path / "none.cer", "cannot be read"), (junk, "not an X.509"), (elliptic, "no RSA key")):
        config = DarajaConfig(live_certificate=str(path))
        with pytest.raises(CertificateError, match=word) as refused:
            certificate_for(config, "live")
        text = str(refused.value)
        assert "daraja.live_certificate" in text
        assert str(path) in text
        assert "download Safaricom's live certificate" in text


def test_certificate_outside_its_validity_is_refused_for_signatures_and_still_encrypts(tmp_path: Path) -> None:
    issued = issue(tmp_path / "old.cer", since=-4000, days=365)
    assert issued.decrypt(read_certificate(issued.path).encrypt(Secret("Safaricom999!")).reveal()) == "Safaricom999!"
    certificate = read_certificate(issue(tmp_path / "a.cer", days=30).path)
    now = datetime.now(UTC)
    certificate.check_time(now)
    with pytest.raises(CertificateError, match="expired on"):
        certificate.check_time(now + timedelta(days=40))
    with pytest.raises(CertificateError, match="check this machine's clock"):
        certificate.check_time(now - timedelta(days=2))


def test_certificate_has_signed_only_what_its_key_signed(tmp_path: Path) -> None:
    issued, other = issue(tmp_path / "a.cer"), issue(tmp_path / "b.cer")
    certificate = read_certificate(issued.path)
    body = b'{"Body": 1}'
    assert certificate.has_signed(body, _raw(issued.sign(body)))
    assert not certificate.has_signed(body + b" ", _raw(issued.sign(body)))
    assert not certificate.has_signed(body, _raw(other.sign(body)))
    assert not certificate.has_signed(body, b"")


def _raw(header: str) -> bytes:
    return base64.b64decode(header)


def test_certificate_describe_states_env_and_expiry(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    issued = issue(tmp_path / "a.cer", since=-100, days=140)
    config = DarajaConfig(live_certificate=str(issued.path), sandbox_certificate=str(tmp_path / "none.cer"))
    until = f"{read_certificate(issued.path).not_after:%Y-%m-%d}"
    assert describe(config, "live", now) == (True, f"live until {until}")
    assert describe(config, "live", now + timedelta(days=20, hours=1)) == (
        False,
        f"live until {until}, in 19 days: download the next one from the developer portal",
    )
    # The published certificates expired years ago and are still in use.
    for later in (timedelta(days=41), timedelta(days=4000)):
        is_fine, text = describe(config, "live", now + later)
        assert (is_fine, f"expired on {until}, and still encrypts" in text) == (True, True)
    is_fine, text = describe(config, "live", now - timedelta(days=200))
    assert (is_fine, "is valid from" in text) == (True, True)
    is_fine, text = describe(config, "sandbox", now)
    assert (is_fine, "daraja.sandbox_certificate" in text, "cannot be read" in text) == (False, True, True)
