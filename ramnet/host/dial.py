"""One HTTP request to one server: look up, connect, TLS, ask, read no more than was agreed.

The standard library's client does the protocol; nothing here follows a redirect or sends anything
that was not passed in. Every step ends in time, also against a server that sends an octet a minute.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ramnet import __version__
from ramnet.core.enginefacts import Endpoint, Fact, Insecure, printable
from ramnet.core.hops import Dns
from ramnet.core.names import Address
from ramnet.core.urls import Host, Url
from ramnet.errors import HostError

# Docker waits 15 s for the headers of an answer (moby, registry/registry.go).
CONNECT_SECONDS: Final = 10.0
HOP_SECONDS: Final = 15.0
# Big registries have some eight addresses of each family; a client tries them one by one.
MAX_ADDRESSES: Final = 16
# moby, registry/service.go and pkg/homedir: where root's engine has its certificates.
CERTS_D: Final = Path("/etc/docker/certs.d")
MAX_CERTIFICATES: Final = 64
# OpenSSL on an answer that is no TLS, by its version.
_NO_TLS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")
USER_AGENT: Final = f"ramnet/{__version__} (doctor)"


class DialFailed(Exception):
    """A server could not be asked; the message says why. ``address`` is the last one tried."""

    def __init__(self, message: str, *, address: str = "") -> None:
        super().__init__(message)
        self.address = address


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. ``body`` is no longer than was asked for."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    address: str

    def header(self, name: str) -> str:
        """Return the first field of this name, empty where there is none."""
        return str(self.headers.get(name, ""))

    def all(self, name: str) -> list[str]:
        """Return all fields of this name."""
        return [str(value) for value in self.headers.get_all(name, [])]


@dataclass(frozen=True, slots=True)
class Trust:
    """TLS for a walk: for the registry's own host and port, and for all others that it names.

    What Docker is told of a registry is meant for that: a certificate that it need not have, and
    a key that says who asks.
    """

    own: ssl.SSLContext
    others: ssl.SSLContext


def lookup(host: Host, port: int) -> tuple[Dns, tuple[str, ...]]:
    """Ask the machine's own resolver; return what it says and the addresses to try."""
    try:
        found = socket.getaddrinfo(
            str(host), port, type=socket.SOCK_STREAM, flags=socket.AI_CANONNAME
        )
    except (OSError, UnicodeError) as err:
        return Dns(error=printable(getattr(err, "strerror", None) or str(err))), ()
    addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))[:MAX_ADDRESSES]
    name = printable(found[0][3].rstrip(".").lower())
    cname = name if isinstance(host, str) and name != host else ""
    return Dns(addresses, "" if name in addresses else cname), addresses


def trust(registry: str, *, insecure: bool, certs: Path = CERTS_D) -> Trust:
    """Make the TLS settings of a walk: the system's authorities, and Docker's own for a registry.

    ``SSL_CERT_FILE`` replaces the former, as it does for Docker. ``registry`` is host and port as
    in the image's name. Raises ``HostError`` for a certificate that cannot be used.
    """
    own, others = ssl.create_default_context(), ssl.create_default_context()
    if insecure:
        own.check_hostname = False
        own.verify_mode = ssl.CERT_NONE
    for path in _certificates(certs / registry):
        try:
            if path.suffix == ".crt":
                own.load_verify_locations(path)
                others.load_verify_locations(path)
            elif path.suffix == ".cert":
                own.load_cert_chain(path, path.with_suffix(".key"))
        except (OSError, ssl.SSLError) as err:
            raise HostError(
                f"{path} cannot be used: {err.strerror or err}", hint="Docker reads it as well"
            ) from err
    return Trust(own, others)


def unverified(wire: Address, facts: Iterable[Fact]) -> bool:
    """Tell whether Docker takes a registry whose certificate it cannot check, or without TLS.

    By its own rule for this machine's loopback, or because its configuration (``facts``) says so.
    """
    if Endpoint(wire, wire.port or 0).loopback:
        return True
    for fact in facts:
        if isinstance(fact, Insecure):
            if isinstance(fact.where, Endpoint):
                if fact.where.address == wire:
                    return True
            elif wire.ip is not None and wire.ip in fact.where:
                return True
    return False


def _certificates(folder: Path) -> list[Path]:
    with suppress(OSError, ValueError):
        return sorted(folder.iterdir())[:MAX_CERTIFICATES]
    return []


def ask(
    url: Url,
    addresses: tuple[str, ...],
    context: ssl.SSLContext,
    headers: Mapping[str, str],
    limit: int,
    body: bytes | None = None,
) -> Answer:
    """Send one GET (a POST with ``body``) and read at most ``limit`` bytes of what comes back.

    Raises ``DialFailed``.
    """
    address = ""
    try:
        with _connected(url.port, addresses) as (sock, address), _ending(sock):
            channel = (
                context.wrap_socket(sock, server_hostname=str(url.host)) if _tls(url) else sock
            )
            with channel:
                answer = _exchange(url, channel, headers, limit, body, address)
        return answer  # noqa: TRY300 - not before _ending has said that it came in time
    except ssl.SSLCertVerificationError as err:
        why = f"its certificate is not accepted: {err.verify_message}"
    except ssl.SSLError as err:
        why = f"no TLS: {err.reason or err}"
        if err.reason in _NO_TLS:
            why = "it does not speak TLS; for plain HTTP Docker needs it in insecure-registries"
    except TimeoutError:
        why = f"no answer within {HOP_SECONDS:.0f} s"
    except OSError as err:
        why = err.strerror or str(err)
    except (http.client.HTTPException, ValueError) as err:
        why = f"the answer is not HTTP: {type(err).__name__} {err}"
    raise DialFailed(printable(why), address=address)


def _tls(url: Url) -> bool:
    return url.scheme == "https"


@contextmanager
def _connected(port: int, addresses: tuple[str, ...]) -> Iterator[tuple[socket.socket, str]]:
    """Connect to the first address that takes it."""
    last: OSError = OSError("it has no address")
    end = time.monotonic() + HOP_SECONDS
    for address in addresses:
        left = min(CONNECT_SECONDS, end - time.monotonic())
        if left <= 0:
            break
        try:
            sock = socket.create_connection((address, port), left)
        except TimeoutError:
            last = OSError(f"{address} does not answer within {left:.0f} s")
        except OSError as err:
            last = OSError(f"{address}: {err.strerror or err}")
        else:
            with sock:
                yield sock, address
            return
    raise DialFailed(printable(str(last)), address=addresses[-1] if addresses else "")


@contextmanager
def _ending(sock: socket.socket) -> Iterator[None]:
    """Shut a connection down when its time is over: a timeout of the socket begins anew each read.

    Whatever came of it then is a ``TimeoutError``: http.client takes a header that ends for a whole
    one. The descriptor is a copy, since TLS takes the socket over.
    """
    sock.settimeout(HOP_SECONDS)
    copy = sock.dup()
    over = threading.Event()

    def end() -> None:
        over.set()
        with suppress(OSError):
            copy.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(HOP_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as err:
        if over.is_set():
            raise TimeoutError from err
        raise
    finally:
        timer.cancel()
        timer.join()
        copy.close()
    if over.is_set():
        raise TimeoutError


def _exchange(
    url: Url,
    sock: socket.socket,
    headers: Mapping[str, str],
    limit: int,
    body: bytes | None,
    address: str,
) -> Answer:
    connection = http.client.HTTPConnection(str(url.host), url.port)
    connection.sock = sock
    connection.auto_open = 0
    # Host is ours to write: presigned URLs are signed for it without the usual port.
    connection.putrequest(
        "GET" if body is None else "POST", url.target, skip_host=True, skip_accept_encoding=True
    )
    for name, value in {"Host": url.authority, "User-Agent": USER_AGENT, **headers}.items():
        connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Type", "application/x-www-form-urlencoded")
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    response = connection.getresponse()
    return Answer(response.status, response.headers, response.read(limit), address)
