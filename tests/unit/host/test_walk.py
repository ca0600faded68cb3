"""A walk against real servers on loopback that answer what a test says: no root, no lab."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from pathlib import Path

import pytest

from ramnet.core.challenge import Credentials
from ramnet.core.enginefacts import Insecure, endpoint
from ramnet.core.hops import Hop, Judge, Role
from ramnet.core.manifests import INDEXES, MANIFESTS, Platform
from ramnet.core.names import parse_address
from ramnet.core.reference import parse_reference
from ramnet.core.terms import TrafficClass
from ramnet.errors import HostError
from ramnet.host import dial
from ramnet.host.dial import trust, unverified
from ramnet.host.follow import MAX_REDIRECTS
from ramnet.host.walk import Walker, companions, judged_only
from ramnet.host.walking import WalkTooLong, walking
from ramnet.lab.pki import Pki
from tests.unit.core.support import CATALOG, TODAY, policy

AMD64 = Platform("linux", "amd64")


@dataclass
class Said:
    """One answer; ``body`` None: the connection is closed without a word."""

    status: int = 200
    body: bytes | None = b""
    headers: dict[str, str] = field(default_factory=dict)


Answers = Callable[["Asked"], Said]


@dataclass
class Asked:
    path: str
    authorization: str
    host: str
    body: bytes
    method: str


class Server(ThreadingHTTPServer):
    """Answers by a function, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self, answers: Answers) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.asked: list[Asked] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are part of it."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        asked = Asked(
            self.path,
            self.headers.get("Authorization", ""),
            self.headers.get("Host", ""),
            self.rfile.read(length),
            self.command,
        )
        self.server.asked.append(asked)
        said = self.server.answers(asked)
        if said.body is None:
            self.close_connection = True
            return
        self.send_response(said.status)
        for name, value in said.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(said.body)

    do_POST = do_GET  # noqa: N815 - as the library names it

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the library has it
        pass


@contextmanager
def serving(answers: Answers, context: ssl.SSLContext | None = None) -> Iterator[Server]:
    with Server(answers) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def digest(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


LAYER, CONFIG = b"a layer" * 10_000, b"{}"


def manifest(*layers: bytes, urls: tuple[str, ...] = ()) -> bytes:
    parts: list[dict[str, object]] = [{"digest": digest(one)} for one in layers or (LAYER,)]
    if urls:
        parts.append({"digest": digest(b"foreign"), "urls": list(urls)})
    return json.dumps({"config": {"digest": digest(CONFIG)}, "layers": parts}).encode()


def image(made: bytes = b"", odd: Mapping[str, Said] | None = None, **more: Said) -> Answers:
    """A registry with one image; ``odd`` and ``more`` answer for paths that end so."""
    made = made or manifest()
    odd = {**(odd or {}), **more}
    blobs = {digest(one): one for one in (LAYER, CONFIG, b"one", b"two")}

    def answers(asked: Asked) -> Said:
        last = asked.path.rpartition("/")[2].partition("?")[0]
        if last in odd:
            return odd[last]
        if "/manifests/" in asked.path:
            return Said(200, made, {"Content-Type": MANIFESTS[0]})
        if last in blobs:
            return Said(200, blobs[last])
        return Said(200 if asked.path == "/v2/" else 404)

    return answers


def walk(
    server: Server,
    *,
    name: str = "acme/app",
    listed: tuple[str, ...] = ("localhost:*",),
    credentials: Credentials | None = None,
) -> list[Hop]:
    """Pull from the server as an insecure one, as what is on localhost is to Docker."""
    reference = parse_reference(f"localhost:{server.port}/{name}")
    judge = Judge(policy(*listed), CATALOG, TODAY, TrafficClass.ENGINE, reference)
    context = trust(reference.domain, insecure=True)
    return list(Walker(judge, AMD64, context, credentials, insecure=True).hops())


def roles(hops: list[Hop]) -> list[tuple[str, int | None]]:
    return [(str(hop.role), hop.status) for hop in hops]


WHOLE = [("ping", 200), ("manifest", 200), ("config", 200), ("layer", 200)]


def test_plain_http_is_tried_after_https() -> None:
    with serving(image()) as server:
        hops = walk(server)
    assert roles(hops) == WHOLE
    assert {hop.url.scheme for hop in hops} == {"http"}
    assert all(hop.passed and hop.dialled and hop.address == "127.0.0.1" for hop in hops)
    assert {asked.host for asked in server.asked} == {f"localhost:{server.port}"}


def test_a_server_that_is_not_there_is_told_both_ways() -> None:
    with serving(image()) as server:
        pass
    hops = walk(server)
    assert [hop.url.scheme for hop in hops] == ["https", "http"]
    assert all("refused" in hop.error and hop.dialled for hop in hops)


def test_a_layer_from_where_others_came_is_not_told_again() -> None:
    with serving(image(manifest(b"one", b"two", LAYER))) as server:
        hops = walk(server)
        assert len(server.asked) == 6
    assert roles(hops) == WHOLE


def test_a_second_layer_that_fails_is_told() -> None:
    with serving(image(manifest(b"one", b"nowhere"))) as server:
        hops = walk(server)
    assert roles(hops) == [*WHOLE, ("layer", 404)]
    assert hops[-1].error


def test_a_foreign_layer_is_fetched_from_its_own_place() -> None:
    with serving(image()) as other:
        there = f"http://localhost:{other.port}/v2/x/blobs/{digest(LAYER)}"
        with serving(image(manifest(LAYER, urls=(there, there)))) as server:
            hops = walk(server)
            assert len(other.asked) == 1
            assert (hops[-1].role, hops[-1].url.port) == (Role.LAYER, other.port)
            assert all(hop.passed for hop in hops)
            refused = walk(server, listed=(f"localhost:{server.port}",))
            assert len(other.asked) == 1
    assert not refused[-1].verdict.allowed


@pytest.mark.parametrize("place", ["file:///etc/passwd", "nowhere"])
def test_a_foreign_layer_in_no_place_is_told(place: str) -> None:
    with serving(image(manifest(LAYER, urls=(place,)))) as server:
        assert "foreign" in walk(server)[-1].error


def index(*parts: tuple[bytes, str]) -> Said:
    entries = [
        {"digest": digest(made), "platform": {"os": "linux", "architecture": architecture}}
        for made, architecture in parts
    ]
    body = json.dumps({"manifests": entries}).encode()
    return Said(200, body, {"Content-Type": INDEXES[0]})


def test_an_index_leads_to_the_image_of_the_platform() -> None:
    made = manifest()
    with serving(image(made, latest=index((b"other", "s390x"), (made, "amd64")))) as server:
        hops = walk(server)
    assert roles(hops) == [("ping", 200), ("manifest", 200), *WHOLE[1:]]
    assert str(hops[2].url).endswith(digest(made))


def test_an_index_without_the_platform_is_told() -> None:
    with serving(image(latest=index((b"other", "s390x")))) as server:
        assert "linux/amd64" in walk(server)[-1].error


def test_an_index_of_indexes_is_told() -> None:
    inner = index((b"x", "amd64"))
    assert inner.body is not None
    outer = index((inner.body, "amd64"))
    answers = image(odd={"latest": outer, digest(inner.body): inner})
    with serving(answers) as server:
        assert "index of indexes" in walk(server)[-1].error


def test_a_manifest_must_be_what_its_digest_says() -> None:
    with serving(image()) as server:
        assert walk(server, name=f"acme/app@{digest(manifest())}")[-1].passed
        assert "digest" in walk(server, name=f"acme/app@{digest(b'x')}")[-1].error


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (Said(404), "no such image: status 404"),
        (Said(404, b'{"errors":[{"code":"X","message":"a\\u001bb"}]}'), "X: a?b"),
        (Said(429), "too many requests"),
        (Said(500, b"x" * 100_000), "no manifest: status 500"),
        (Said(200, b"<html>"), "not JSON"),
        (Said(200, b'{"schemaVersion": 1}'), "schema 1"),
        (Said(403), "--credentials"),
        (Said(401), "no challenge"),
        (Said(401, b"", {"WWW-Authenticate": 'Bearer realm="x'}), "open quote"),
        (Said(401, b"", {"WWW-Authenticate": "Bearer service=x"}), "no realm"),
        (Said(401, b"", {"WWW-Authenticate": "Negotiate"}), "no challenge"),
        (Said(401, b"", {"WWW-Authenticate": "Basic realm=x"}), "--credentials"),
        (Said(307), "redirects to"),
        (Said(307, b"", {"Location": "ftp://x/"}), "neither http"),
        (Said(307, b"", {"Location": "/v2/acme/app/manifests/latest"}), "in a circle"),
        (Said(200, None), "closed connection"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_told(said: Said, why: str) -> None:
    with serving(image(latest=said)) as server:
        hops = walk(server)
    assert (hops[-1].role, hops[-1].passed) == (Role.MANIFEST, False)
    assert why in hops[-1].error


def test_redirects_have_an_end() -> None:
    def answers(asked: Asked) -> Said:
        return Said(302, b"", {"Location": f"{asked.path}x"})

    with serving(answers) as server:
        hops = [hop for hop in walk(server) if hop.url.scheme == "http"]
    assert len(hops) == MAX_REDIRECTS + 1
    assert "more than" in hops[-1].error


def protected(realm: Callable[[Server], str]) -> Answers:
    """A registry that wants a token, which the realm gives."""
    whole = image()

    def answers(asked: Asked) -> Said:
        if asked.path.startswith("/token"):
            return Said(200, b'{"token": "opened"}')
        if asked.authorization == "Bearer opened":
            return whole(asked)
        challenge = f'Bearer realm="{realm(SERVERS[-1])}",service="lab"'
        return Said(401, b"", {"WWW-Authenticate": challenge})

    return answers


SERVERS: list[Server] = []


def own(server: Server) -> str:
    return f"http://localhost:{server.port}/token?x=1"


def test_a_token_is_got_and_shown() -> None:
    with serving(protected(own)) as server:
        SERVERS.append(server)
        hops = walk(server)
    assert roles(hops) == [("ping", 401), ("token", 200), *WHOLE[1:]]
    (asked,) = [one for one in server.asked if one.path.startswith("/token")]
    assert asked.path == "/token?x=1&service=lab&scope=repository%3Aacme%2Fapp%3Apull"
    assert asked.authorization == ""


def test_a_login_goes_to_the_realm_alone() -> None:
    with serving(protected(own)) as server:
        SERVERS.append(server)
        walk(server, credentials=Credentials("me", "secret"))
    tokens = [one for one in server.asked if one.path.startswith("/token")]
    assert [one.authorization for one in tokens] == ["Basic bWU6c2VjcmV0"]
    assert tokens[0].path.endswith("&account=me")
    others = {one.authorization for one in server.asked if one not in tokens}
    assert others == {"", "Bearer opened"}


def test_an_identity_token_is_posted() -> None:
    with serving(protected(own)) as server:
        SERVERS.append(server)
        hops = walk(server, credentials=Credentials("", "refresh&", identity=True))
    assert hops[-1].passed
    (asked,) = [one for one in server.asked if one.path.startswith("/token")]
    assert (asked.method, asked.path) == ("POST", "/token?x=1")
    assert b"refresh_token=refresh%26" in asked.body


def test_a_token_that_opens_nothing_ends_the_walk() -> None:
    challenge = {"WWW-Authenticate": 'Bearer realm="/token"'}

    def answers(asked: Asked) -> Said:
        if asked.path.startswith("/token"):
            return Said(200, b'{"token": "closed"}')
        return Said(401, b"", challenge)

    with serving(answers) as server:
        hops = walk(server)
        assert len(server.asked) == 3
    assert roles(hops) == [("ping", 401), ("token", 200), ("manifest", 401)]


@pytest.mark.parametrize("said", [Said(200, b"{}"), Said(403), Said(200, b"[" * 50_000)])
def test_a_realm_that_gives_none_ends_the_walk(said: Said) -> None:
    challenge = {"WWW-Authenticate": 'Bearer realm="/token"'}

    def answers(asked: Asked) -> Said:
        return said if asked.path.startswith("/token") else Said(401, b"", challenge)

    with serving(answers) as server:
        hops = walk(server)
    assert (hops[-1].role, hops[-1].passed) == (Role.TOKEN, False)


def test_a_challenge_may_come_late() -> None:
    """Some registries answer 200 to the ping, and 401 to the first that is asked."""
    whole = image()

    def answers(asked: Asked) -> Said:
        if asked.path.startswith("/token"):
            return Said(200, b'{"access_token": "opened"}')
        if asked.path == "/v2/" or asked.authorization:
            return whole(asked)
        return Said(401, b"", {"WWW-Authenticate": 'Bearer realm="/token"'})

    with serving(answers) as server:
        hops = walk(server)
    assert roles(hops) == [
        ("ping", 200),
        ("manifest", 401),
        ("token", 200),
        *WHOLE[1:],
    ]
    assert all(hop.passed for hop in hops)


def test_basic_credentials_go_to_the_registry_and_nowhere_else() -> None:
    with serving(image()) as blobs:
        onward = {"Location": f"http://127.0.0.1:{blobs.port}/{digest(LAYER)}"}
        whole = image(odd={digest(LAYER): Said(307, b"", onward)})

        def answers(asked: Asked) -> Said:
            if asked.authorization == "Basic bWU6c2VjcmV0":
                return whole(asked)
            return Said(401, b"", {"WWW-Authenticate": "Basic realm=x"})

        listed = ("localhost:*", "127.0.0.1:*")
        with serving(answers) as server:
            hops = walk(server, listed=listed, credentials=Credentials("me", "secret"))
        assert roles(hops)[-2:] == [("layer", 307), ("redirect", 200)]
        assert hops[-1].purpose is Role.LAYER
        assert [one.authorization for one in blobs.asked] == [""]
        assert [one.host for one in blobs.asked] == [f"127.0.0.1:{blobs.port}"]


def test_a_login_is_not_posted_on_to_another_host() -> None:
    with serving(image()) as other:
        onward = {"Location": f"http://127.0.0.1:{other.port}/token"}

        def answers(asked: Asked) -> Said:
            if asked.path.startswith("/token"):
                return Said(307, b"", onward)
            return Said(401, b"", {"WWW-Authenticate": 'Bearer realm="/token"'})

        with serving(answers) as server:
            known = Credentials("", "refresh", identity=True)
            hops = walk(server, listed=("localhost:*", "127.0.0.1:*"), credentials=known)
        assert other.asked == []
    assert "not sent on" in hops[-1].error


def test_what_the_policy_refuses_is_not_dialled() -> None:
    with serving(image()) as server:
        hops = walk(server, listed=("quay.io",))
        assert server.asked == []
    assert all(not hop.dialled and not hop.verdict.allowed for hop in hops)
    assert all("127.0.0.1" in hop.dns.addresses for hop in hops)


# --- TLS


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


def tls(pki: Pki, *names: str) -> ssl.SSLContext:
    pair = pki.issue(f"server-{names[0]}", names)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


def secure_walk(server: Server, certs: Path, who: Credentials | None = None) -> list[Hop]:
    reference = parse_reference(f"localhost:{server.port}/acme/app")
    judge = Judge(policy("localhost:*"), CATALOG, TODAY, TrafficClass.ENGINE, reference)
    context = trust(reference.domain, insecure=False, certs=certs)
    return list(Walker(judge, AMD64, context, who).hops())


def test_a_certificate_is_checked(pki: Pki, tmp_path: Path) -> None:
    with serving(image(), tls(pki, "localhost")) as server:
        (refused,) = secure_walk(server, tmp_path)
        assert server.asked == []
        folder = tmp_path / f"localhost:{server.port}"
        folder.mkdir()
        (folder / "ca.crt").write_bytes(pki.ca.read_bytes())
        passed = secure_walk(server, tmp_path)
    assert "certificate" in refused.error
    assert roles(passed) == WHOLE


def test_a_certificate_for_another_name_is_refused(
    pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.ca))
    with serving(image(), tls(pki, "other.example")) as server:
        (refused,) = secure_walk(server, tmp_path)
    assert "not valid for 'localhost'" in refused.error


def test_plain_http_is_not_taken_where_it_is_not_configured(tmp_path: Path) -> None:
    with serving(image()) as server:
        (refused,) = secure_walk(server, tmp_path)
    assert "insecure-registries" in refused.error


def test_a_login_is_not_sent_without_tls(
    pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.ca))
    with serving(protected(own)) as realm:
        SERVERS.append(realm)
        with serving(protected(own), tls(pki, "localhost")) as server:
            hops = secure_walk(server, tmp_path, Credentials("me", "secret"))
        assert realm.asked == []
    assert "without TLS" in hops[-1].error


def test_who_is_redirected_to_does_not_say_where_the_login_goes() -> None:
    """Neither in answer to the ping nor later; the realm would get the password."""

    def thief(_: Asked) -> Said:
        return Said(401, b"", {"WWW-Authenticate": 'Bearer realm="/token"'})

    with serving(thief) as other:
        onward = Said(307, b"", {"Location": f"http://127.0.0.1:{other.port}/v2/"})
        for odd in ({"": onward}, {"latest": onward}, {digest(LAYER): onward}):
            with serving(image(odd=odd)) as server:
                hops = walk(
                    server,
                    listed=("localhost:*", "127.0.0.1:*"),
                    credentials=Credentials("me", "secret"),
                )
            assert "not the registry itself" in hops[-1].error
            assert (hops[-1].role, hops[-1].status) == (Role.REDIRECT, 401)
    assert {(asked.path, asked.authorization) for asked in other.asked} == {("/v2/", "")}


def test_an_insecure_registrys_login_goes_to_no_other_without_tls() -> None:
    with serving(protected(own)) as realm:
        SERVERS.append(realm)
        with serving(protected(own)) as server:
            for who in (Credentials("me", "secret"), Credentials("", "refresh", identity=True)):
                hops = walk(server, credentials=who)
                assert (hops[-1].role, hops[-1].dialled) == (Role.TOKEN, False)
                assert "without TLS" in hops[-1].error
    assert realm.asked == []


def test_what_an_insecure_registry_names_is_verified(pki: Pki) -> None:
    """Its own certificate need not be good; that of a host that it redirects to must be."""
    with serving(image(), tls(pki, "localhost")) as blobs:
        onward = Said(307, b"", {"Location": f"https://localhost:{blobs.port}/{digest(LAYER)}"})
        answers = image(odd={digest(LAYER): onward})
        with serving(answers, tls(pki, "other.example")) as server:
            hops = walk(server)
        assert blobs.asked == []
    assert [hop.status for hop in hops] == [200, 200, 200, 307, None]
    assert "certificate is not accepted" in hops[-1].error


def test_the_registrys_client_certificate_is_shown_to_no_other(pki: Pki, tmp_path: Path) -> None:
    files = (tmp_path / "client.cert", tmp_path / "client.key")
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    argv += ["-nodes", "-subj", "/CN=me", "-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run(argv, check=True, capture_output=True)
    strict = tls(pki, "localhost")
    strict.load_verify_locations(files[0])
    strict.verify_mode = ssl.CERT_REQUIRED
    with serving(image(), strict) as blobs:
        onward = Said(307, b"", {"Location": f"https://localhost:{blobs.port}/{digest(LAYER)}"})
        with serving(image(odd={digest(LAYER): onward}), strict) as server:
            folder = tmp_path / f"localhost:{server.port}"
            folder.mkdir()
            (folder / "ca.crt").write_bytes(pki.ca.read_bytes())
            for file in files:
                file.rename(folder / file.name)
            hops = secure_walk(server, tmp_path)
        assert blobs.asked == []
    # The authority of the folder holds for both: Docker believes it of both.
    assert [hop.status for hop in hops] == [200, 200, 200, 307, None]
    assert "certificate is not accepted" not in hops[-1].error


@pytest.mark.parametrize("name", ["ca.crt", "client.cert"])
def test_a_certificate_that_is_none_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "corp.example").mkdir()
    (tmp_path / "corp.example" / name).write_text("nothing", encoding="utf-8")
    with pytest.raises(HostError, match=name):
        trust("corp.example", insecure=False, certs=tmp_path)


# --- servers that do not want to end


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nX: "], ids=["status", "header"])
def test_a_server_that_is_slow_at_every_octet_has_an_end(
    begin: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "HOP_SECONDS", 0.5)
    over = threading.Event()

    class Slow(Handler):
        def do_GET(self) -> None:
            self.wfile.write(begin)
            while not over.wait(0.05):
                self.wfile.write(b"H")

    with serving(image()) as server:
        server.RequestHandlerClass = Slow
        begun = time.monotonic()
        hops = walk(server)
        over.set()
    assert time.monotonic() - begun < 5
    assert all("no answer within" in hop.error for hop in hops if hop.url.scheme == "http")


@pytest.mark.parametrize(
    "said",
    [b"\0" * 100_000, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000, b"HTTP/1.1 banana\r\n\r\n"],
)
def test_what_is_no_http_is_told(said: bytes) -> None:
    class Garbage(Handler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.wfile.write(said)

    with serving(image()) as server:
        server.RequestHandlerClass = Garbage
        hops = walk(server)
    assert hops
    assert all(hop.error and "\0" not in hop.error for hop in hops)


# --- what is known without going there


def test_a_judgement_without_a_walk() -> None:
    reference = parse_reference("localhost:5000/x")
    judge = Judge(policy("quay.io"), CATALOG, TODAY, TrafficClass.CONTAINERS, reference)
    (hop,) = judged_only(judge)
    assert not hop.dialled
    assert "127.0.0.1" in hop.dns.addresses
    assert list(companions(judge)) == []
    hub = Judge(policy("quay.io"), CATALOG, TODAY, TrafficClass.ENGINE, parse_reference("busybox"))
    found = list(companions(hub))
    assert [one.host for one in found] == list(hub.companions())
    assert not any(one.verdict.allowed for one in found)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("corp.example:5000", True),
        ("corp.example", False),
        ("10.1.2.3:5000", True),
        ("10.2.2.3:5000", False),
    ],
)
def test_which_registries_docker_takes_without_a_certificate(name: str, wanted: bool) -> None:
    facts = (
        Insecure(endpoint("corp.example:5000", "https"), "daemon.json"),
        Insecure(ip_network("10.1.0.0/16"), "daemon.json"),
    )
    assert unverified(parse_address(name), facts) is wanted


# --- the process of the walk


def test_a_walk_is_made_in_a_process_of_its_own() -> None:
    found = list(walking(lambda: iter([os.getpid(), "more"]), None))
    assert found[0] != os.getpid()
    assert found[1] == "more"


def test_what_was_told_before_it_took_too_long_is_kept() -> None:
    def steps() -> Iterator[int]:
        yield os.getpid()
        time.sleep(60)

    begun = time.monotonic()
    walked = walking(steps, None, seconds=0.5)
    pid = next(walked)
    with pytest.raises(WalkTooLong):
        next(walked)
    assert time.monotonic() - begun < 5
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_fault_of_the_walk_is_told() -> None:
    def steps() -> Iterator[int]:
        yield 1
        raise HostError("no way", hint="another")

    with pytest.raises(HostError, match="no way") as told:
        list(walking(steps, None))
    assert told.value.hint == "another"


def test_a_walk_that_is_killed_is_told() -> None:
    def steps() -> Iterator[int]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield 1

    with pytest.raises(HostError, match="ended by itself"):
        list(walking(steps, None))


def test_a_walk_has_an_end_of_its_own() -> None:
    """The kernel's: whoever would kill it may hang."""
    (left,) = walking(lambda: iter([signal.alarm(0)]), None, seconds=30)
    assert 0 < left <= 40


_KILLED = """
import time
from ramnet.host.walking import walking
def steps():
    import os
    yield os.getpid()
    time.sleep(60)
for pid in walking(steps, None):
    print(pid, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_walk_ends_with_whoever_wants_it(number: signal.Signals) -> None:
    argv = [sys.executable, "-c", _KILLED]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(number)
        parent.wait(10)
        watched = Path(f"/proc/{child}/stat")
        end = time.monotonic() + 5
        while alive(watched) and time.monotonic() < end:
            time.sleep(0.02)
        left = alive(watched)
        if left:
            os.kill(child, signal.SIGKILL)
    assert not left


def alive(stat: Path) -> bool:
    """Tell whether a process runs; a dead one may wait for somebody to ask for it."""
    try:
        return stat.read_text(encoding="utf-8").rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
