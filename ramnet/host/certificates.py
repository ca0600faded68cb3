"""The certificates that carry the message, made here and known to nobody.

Who asks for a host by its name is shown what a certificate is valid for instead. Who asks for a
bare address gets one that is valid for it: of that Go says only who did not sign it.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ramnet.core.notice import Message
from ramnet.errors import HostError

# The clock of WSL2 jumps when its host wakes up, by hours; one that was never set is off by days.
BACKDATED = timedelta(days=30)
LIFETIME = timedelta(days=90)
# Renewed so long before its end, which a clock that jumps does not use up.
RENEWED_BEFORE = timedelta(days=45)
# Contexts that are kept: one for names, the others for the addresses that were asked for last.
MAX_CONTEXTS: Final = 64


def _now() -> datetime:
    return datetime.now(UTC)


def make_certificate(
    message: Message, now: datetime, address: IPv4Address | IPv6Address | None = None
) -> bytes:
    """Make a key and a self-signed certificate for the one name of the message, as PEM.

    Or for the one ``address``. Then follows an authority of the same name, which has not signed it:
    Go's error names who may have been meant (x509.UnknownAuthorityError).
    """
    key = ec.generate_private_key(ec.SECP256R1())
    named: x509.GeneralName = x509.DNSName(message.certificate_name)
    if address is not None:
        named = x509.IPAddress(address)
    leaf = (
        _builder(message, now, key, authority=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([named]), critical=False)
    )
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    made = plain + leaf.sign(key, SHA256()).public_bytes(Encoding.PEM)
    if address is None:
        return made
    other = ec.generate_private_key(ec.SECP256R1())
    signed = _builder(message, now, other, authority=True).sign(other, SHA256())
    return made + signed.public_bytes(Encoding.PEM)


def _builder(
    message: Message, now: datetime, key: ec.EllipticCurvePrivateKey, *, authority: bool
) -> x509.CertificateBuilder:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, message.organization_name),
            x509.NameAttribute(NameOID.COMMON_NAME, message.common_name),
        ]
    )
    return (
        x509.CertificateBuilder(name, name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )


class Certificates:
    """Gives the TLS contexts of a message; those of the last message are kept until renewed."""

    def __init__(self, now: Callable[[], datetime] = _now) -> None:
        self._now = now
        self._message: Message | None = None
        # The one that was not asked for longest comes first.
        self._kept: dict[IPv4Address | IPv6Address | None, tuple[datetime, ssl.SSLContext]] = {}

    def context(
        self, message: Message, address: IPv4Address | IPv6Address | None = None
    ) -> ssl.SSLContext:
        """Return the context of a server that presents this message. Raises ``HostError``.

        With ``address`` to a client that asks for that, and for no name.
        """
        now = self._now()
        if message != self._message:
            self._message = message
            self._kept.clear()
        if (kept := self._kept.pop(address, None)) is not None:
            made, context = kept
            if made - BACKDATED / 2 <= now < made + LIFETIME - RENEWED_BEFORE:
                self._kept[address] = kept
                return context
        context = _context(make_certificate(message, now, address))
        if len(self._kept) >= MAX_CONTEXTS:
            del self._kept[next(iter(self._kept))]
        self._kept[address] = now, context
        return context


def _context(pem: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Nobody comes a second time; what a ticket would cost is saved.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    # OpenSSL takes files only: this one is in memory, for as long as it is read.
    try:
        file = os.memfd_create("certificate", os.MFD_CLOEXEC)
        with os.fdopen(file, "wb") as memory:
            memory.write(pem)
            memory.flush()
            context.load_cert_chain(Path(f"/proc/self/fd/{memory.fileno()}"))
    except OSError as err:
        raise HostError(f"the certificate of the notice cannot be used: {err}") from err
    return context
