from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import NameOID

from ramnet.core.notice import Message
from ramnet.host.certificates import (
    BACKDATED,
    LIFETIME,
    MAX_CONTEXTS,
    RENEWED_BEFORE,
    Certificates,
    make_certificate,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ACME = Message("Acme & Söhne", "it@acme.example")


def test_its_only_name_is_the_message() -> None:
    made = x509.load_pem_x509_certificate(make_certificate(ACME, NOW))
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [ACME.certificate_name]
    subject = {entry.oid: entry.value for entry in made.subject}
    assert subject == {
        NameOID.ORGANIZATION_NAME: "Acme & Söhne",
        NameOID.COMMON_NAME: "registry access denied by Acme & Söhne",
    }
    assert made.issuer == made.subject
    made.verify_directly_issued_by(made)
    assert made.not_valid_before_utc == NOW - BACKDATED
    assert made.not_valid_after_utc == NOW + LIFETIME


@pytest.mark.parametrize("text", ["192.0.2.66", "2001:db8::66"])
def test_that_of_a_bare_address_comes_with_an_authority_that_has_not_signed_it(text: str) -> None:
    address = ip_address(text)
    leaf, authority = x509.load_pem_x509_certificates(make_certificate(ACME, NOW, address))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [address]
    assert leaf.issuer == authority.subject
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    common_name = authority.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    assert common_name == "registry access denied by Acme & Söhne"
    with pytest.raises(InvalidSignature):
        leaf.verify_directly_issued_by(authority)


def test_so_many_addresses_are_kept_those_not_asked_for_go() -> None:
    certificates = Certificates(lambda: NOW)
    kept, name = certificates.context(ACME, ip_address(1)), certificates.context(ACME)
    for number in range(2, MAX_CONTEXTS):
        certificates.context(ACME, ip_address(number))
        assert certificates.context(ACME) is name
    assert certificates.context(ACME, ip_address(1)) is kept
    certificates.context(ACME, ip_address(MAX_CONTEXTS))
    certificates.context(ACME, ip_address(MAX_CONTEXTS + 1))
    assert certificates.context(ACME) is name
    assert certificates.context(ACME, ip_address(1)) is kept
    assert certificates.context(Message("other"), ip_address(1)) is not kept


@pytest.mark.parametrize("organization", ["", "x" * 100, "組織" * 50])
def test_every_organisation_has_one(organization: str) -> None:
    made = x509.load_pem_x509_certificate(make_certificate(Message(organization), NOW))
    assert made.subject


def test_it_is_kept_until_it_is_renewed() -> None:
    now = NOW
    certificates = Certificates(lambda: now)

    def given(message: Message = ACME) -> ssl.SSLContext:
        return certificates.context(message)

    first = given()
    now += timedelta(days=1)
    assert given() is first
    assert given(Message("other")) is not first  # one message at a time
    kept, made = given(), now
    now = made + LIFETIME - RENEWED_BEFORE - timedelta(seconds=1)
    assert given() is kept
    now += timedelta(seconds=1)
    renewed = given()
    assert renewed is not kept
    now -= BACKDATED  # the clock was wrong: what was made is not valid yet, or hardly
    assert given() is not renewed
