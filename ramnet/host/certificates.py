"""The certificate whose name is the message, made here and known to nobody."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

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


def _now() -> datetime:
    return datetime.now(UTC)


def make_certificate(message: Message, now: datetime) -> bytes:
    """Make a key and a self-signed certificate for the one name of the message, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, message.organization_name),
            x509.NameAttribute(NameOID.COMMON_NAME, message.common_name),
        ]
    )
    alternative = x509.SubjectAlternativeName([x509.DNSName(message.certificate_name)])
    made = (
        x509.CertificateBuilder(name, name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(alternative, critical=False)
        .sign(key, SHA256())
    )
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return plain + made.public_bytes(Encoding.PEM)


class Certificates:
    """Gives the TLS context of a message; that of the last message is kept until it is renewed."""

    def __init__(self, now: Callable[[], datetime] = _now) -> None:
        self._now = now
        self._kept: tuple[Message, datetime, ssl.SSLContext] | None = None

    def context(self, message: Message) -> ssl.SSLContext:
        """Return the context of a server that presents this message. Raises ``HostError``."""
        now = self._now()
        if self._kept is not None:
            known, made, context = self._kept
            if known == message and made - BACKDATED / 2 <= now < made + LIFETIME - RENEWED_BEFORE:
                return context
        context = _context(make_certificate(message, now))
        self._kept = message, now, context
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
