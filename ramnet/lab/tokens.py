"""The token server of a split registry, in the way of auth.docker.io; a program of its own.

    python tokens.py PORT CERTIFICATE KEY

A token is a JWT (RFC 7519) that carries the certificate of its key, as the registry server reads
it (distribution, docs/spec/auth/jwt.md). Whoever asks may pull, but not from ``private/``; the one
account may pull and push everywhere. As at Docker Hub a refused access is no error here: the token
comes without it, and the registry refuses that.
"""

from __future__ import annotations

import base64
import json
import secrets
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

ISSUER = "ramnet lab"
USER, PASSWORD = "alice", "hunter2-of-the-lab"
IDENTITY = "identity-token-of-the-lab"
PRIVATE = "private/"
TOKEN_SECONDS = 300
CLOCK_SECONDS = 60  # a token is valid from this much before it was made
BODY_LIMIT = 16384  # octets; a form has some 300
CLAIM_ID_BYTES = 8
P256_BYTES = 32
READY = "the token server listens"


class Signer:
    """Makes tokens with the key of one certificate."""

    def __init__(self, certificate: Path, key: Path) -> None:
        loaded = load_pem_private_key(key.read_bytes(), None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise TypeError("tokens are signed with a P-256 key")
        self._key = loaded
        der = x509.load_pem_x509_certificate(certificate.read_bytes()).public_bytes(Encoding.DER)
        self._chain = [base64.b64encode(der).decode()]

    def token(self, service: str, account: str, access: list[dict[str, object]]) -> str:
        """Return a token for a service that grants this access."""
        now = int(time.time())
        header = {"typ": "JWT", "alg": "ES256", "x5c": self._chain}
        claims = {
            "iss": ISSUER,
            "sub": account,
            "aud": service,
            "iat": now,
            "nbf": now - CLOCK_SECONDS,
            "exp": now + TOKEN_SECONDS,
            "jti": secrets.token_hex(CLAIM_ID_BYTES),
            "access": access,
        }
        text = f"{_base64url(_json(header))}.{_base64url(_json(claims))}"
        r, s = decode_dss_signature(self._key.sign(text.encode(), ec.ECDSA(SHA256())))
        signature = r.to_bytes(P256_BYTES, "big") + s.to_bytes(P256_BYTES, "big")
        return f"{text}.{_base64url(signature)}"


def granted(scopes: list[str], *, known: bool) -> list[dict[str, object]]:
    """Return the access of a token: what is asked for, as far as this client may have it."""
    access: list[dict[str, object]] = []
    for scope in " ".join(scopes).split():
        kind, name, actions = (*scope.split(":"), "", "")[:3]
        given = [one for one in actions.split(",") if known or one == "pull"]
        if kind == "repository" and given and (known or not name.startswith(PRIVATE)):
            access.append({"type": kind, "name": name, "actions": given})
    return access


class Handler(BaseHTTPRequestHandler):
    """Answers one request for a token."""

    protocol_version = "HTTP/1.1"
    signer: Signer

    def do_GET(self) -> None:
        """Answer with a token; 401 when the credentials are not those of the account."""
        query = parse_qs(urlsplit(self.path).query)
        said = self.headers.get("Authorization")
        known = said == _basic(USER, PASSWORD)
        if said is not None and not known:
            self._answer(401, {"details": "incorrect username or password"})
            return
        service = query.get("service", [""])[0]
        access = granted(query.get("scope", []), known=known)
        token = self.signer.token(service, USER if known else "", access)
        self._answer(200, {"token": token, "access_token": token, "expires_in": TOKEN_SECONDS})

    def do_POST(self) -> None:
        """Exchange the account's identity token, as OAuth 2 has it; 404 sends others to GET."""
        self.close_connection = True  # with what may be left of the body
        size = min(int(self.headers.get("Content-Length", "0")), BODY_LIMIT)
        form = parse_qs(self.rfile.read(size).decode(errors="replace"))
        if form.get("refresh_token") != [IDENTITY]:
            self._answer(404, {"details": "no such identity token"})
            return
        access = granted(form.get("scope", []), known=True)
        token = self.signer.token(form.get("service", [""])[0], USER, access)
        self._answer(200, {"access_token": token, "expires_in": TOKEN_SECONDS})

    def _answer(self, status: int, value: dict[str, object]) -> None:
        body = _json(value)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def main(port: str, certificate: str, key: str) -> None:
    """Serve until killed."""
    Handler.signer = Signer(Path(certificate), Path(key))
    with ThreadingHTTPServer(("127.0.0.1", int(port)), Handler) as server:
        sys.stderr.write(f"{READY}\n")
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
