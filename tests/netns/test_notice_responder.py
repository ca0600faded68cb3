"""The responder as the daemon starts it, in a namespace, against clients of every kind.

Nothing is redirected here: clients connect to its port, which is then where they wanted to go.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from ramnet.lab.process import Process, wait_until
from ramnet.lab.programs import PYTHON_PATH
from ramnet.lab.sandbox import Sandbox

pytestmark = pytest.mark.netns

NAME = "registry-access-denied-by-acme.ramnet.invalid"
AUTHORITY = "registry access denied by acme"
SENTENCE = "registry access denied by acme: {} is not allowed; contact it@acme.example"
# The kernel forgets that the responder lives after this time without a beat.
HEARTBEAT_SECONDS = 1.0
# More than the responder has when it starts; a TLS session takes 45 kB.
MOST_KB = 60 * 1024

DAEMON = """
import asyncio, json, sys
from ramnet.host.notice import Notice
from ramnet.host.notify import FdStore

def tell(**what):
    print(json.dumps(what), flush=True)

async def main():
    notice = Notice(
        FdStore(), sys.argv[1], beat=lambda: tell(beat=1), log=lambda line: tell(log=line),
        seen=lambda seen: tell(seen=[seen.name, seen.origin.value, str(seen.address), seen.port]),
    )
    notice.say("acme", "it@acme.example")
    tell(port=notice.port, because=notice.because)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(notice.run())
        while True:
            await asyncio.sleep(0.05)
            if notice._process is not None:
                tell(pid=notice._process.pid)

asyncio.run(main())
"""

# What every client has: `there`, and `ask`, which reads until the end.
CLIENT = """
import json, socket, ssl, sys, time
port = int(sys.argv[1])
def there(family=socket.AF_INET):
    sock = socket.socket(family)
    sock.settimeout(8)
    sock.connect(("127.0.0.1" if family == socket.AF_INET else "::1", port))
    return sock
def ask(octets, sock=None):
    sock = sock or there()
    sock.sendall(octets)
    got = b""
    while data := sock.recv(65536):
        got += data
    return got.decode()
LINGER = b"\\1" + bytes(7)
REQUEST = b"GET /v2/ HTTP/1.1\\r\\nHost: quay.io\\r\\n\\r\\n"
def honest():
    began = time.monotonic()
    assert ask(REQUEST).startswith("HTTP/1.1 403"), "no answer"
    return time.monotonic() - began
def session(verify, name="quay.io"):
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(there(), server_hostname=name)
"""


@dataclass
class House:
    """A machine with the daemon's side and the responder on it."""

    box: Sandbox
    daemon: Process
    log: Path
    directory: Path

    def told(self, key: str) -> list[Any]:
        lines = self.log.read_text("utf-8").splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [line[key] for line in found if key in line]

    @property
    def port(self) -> int:
        return int(self.told("port")[-1])

    @property
    def responder(self) -> int:
        return int(self.told("pid")[-1])

    def client(self, program: str, *, timeout: float = 20.0) -> Any:
        """Run a program against the responder; what it prints as JSON."""
        argv = [sys.executable, "-I", "-c", CLIENT + textwrap.dedent(program), str(self.port)]
        return json.loads(self.box.run(argv, timeout=timeout).stdout or "null")

    def kill(self, signal: str) -> None:
        self.box.run(["sh", "-c", f"kill -{signal} {self.responder}"])

    def beats(self, seconds: float) -> int:
        before = len(self.told("beat"))
        time.sleep(seconds)
        return len(self.told("beat")) - before

    def status(self, key: str) -> str:
        text = self.box.path(f"/proc/{self.responder}/status").read_text("utf-8")
        return next(line.split()[1] for line in text.splitlines() if line.startswith(f"{key}:"))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    # Not below pytest's own folder, into which others than root cannot look.
    with TemporaryDirectory() as name, Sandbox("notice", tmp_path_factory.mktemp("box")) as box:
        directory = Path(name)
        directory.chmod(0o755)
        log = directory / "daemon.log"
        argv = [sys.executable, "-c", DAEMON, str(directory)]
        daemon = box.popen(argv, log=log, env={"PYTHONPATH": str(PYTHON_PATH)})
        made = House(box, daemon, log, directory)
        wait_until(lambda: bool(made.told("beat")), 10, "the first beat", hint=daemon.tail())
        yield made


def test_it_has_no_rights(house: House) -> None:
    assert house.status("Uid") not in {"0", "65534"}
    for key in ("CapPrm", "CapEff", "CapInh", "CapAmb"):
        assert int(house.status(key), 16) == 0
    assert (house.status("NoNewPrivs"), house.status("Seccomp")) == ("1", "2")
    assert house.status("Threads") == "1"


def test_what_the_filter_refuses(house: House) -> None:
    program = """
import json, os, socket, sys
from ramnet.host.confine import confine, drop_user
unix, file = socket.socket(socket.AF_UNIX), os.open("/dev/null", os.O_RDONLY)
def attempts():
    yield "socket", lambda: socket.socket().close()
    yield "connect", lambda: unix.connect(sys.argv[1])
    yield "sendto", lambda: datagram.sendto(b"x", other)
    yield "write", lambda: os.close(os.open("/tmp/x", os.O_WRONLY | os.O_CREAT))
    yield "unlink", lambda: os.unlink("/tmp/x")
    yield "fork", lambda: os.fork() or os._exit(0)
    yield "kill", lambda: os.kill(os.getpid(), 0)
    yield "send", lambda: datagram.send(b"x")
    yield "read", lambda: os.close(os.open("/dev/null", os.O_RDONLY))
def run():
    found.clear()
    for name, act in attempts():
        try:
            act()
            found[name] = "done"
        except OSError as err:
            found[name] = err.errno
    return dict(found)
found = {}
other, manager = f"\\0other{os.getpid()}", f"\\0manager{os.getpid()}"
bound = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
bound[0].bind(other), bound[1].bind(manager)
datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
datagram.connect(manager)
before = run()
unix = socket.socket(socket.AF_UNIX)
if "drop" in sys.argv:
    drop_user()
without = confine(64)
after = run()
try:
    os.execv("/bin/true", ["true"])
except OSError as err:
    after["exec"] = err.errno
print(json.dumps([before, after, without]))
"""
    path = str(house.directory / "notice.sock")
    argv = [sys.executable, "-c", program, path]
    for more in ([], ["drop"]):
        done = house.box.run([*argv, *more], env={"PYTHONPATH": str(PYTHON_PATH)})
        before, after, without = json.loads(done.stdout)
        assert without is None
        assert set(before.values()) == {"done"}, before
        assert (after.pop("read"), after.pop("send")) == ("done", "done")
        assert set(after.values()) == {1}, after
    wait_until(lambda: house.beats(0.5) > 0, 5, "the daemon to come back")


def test_a_client_that_verifies_reads_the_message(house: House) -> None:
    said = house.client("""
        try:
            session(verify=True)
        except ssl.SSLCertVerificationError as err:
            print(json.dumps(err.reason))
    """)
    assert said == "CERTIFICATE_VERIFY_FAILED"
    argv = ["openssl", "s_client", "-connect", f"127.0.0.1:{house.port}", "-servername", "quay.io"]
    shown = house.box.run([*argv, "-verify_hostname", "quay.io"], check=False, input="").stdout
    assert "O = acme, CN = registry access denied by acme" in shown
    certificate = shown[shown.index("-----BEGIN") : shown.index("-----END")]
    text = house.box.run(
        ["openssl", "x509", "-noout", "-text"], input=f"{certificate}-----END CERTIFICATE-----\n"
    ).stdout
    assert text.count("DNS:") == 1
    assert f"DNS:{NAME}" in text
    assert ["quay.io", "sni", "127.0.0.1", house.port] in house.told("seen")


def test_a_client_that_does_not_verify_gets_the_answer_inside(house: House) -> None:
    said = house.client("print(json.dumps(ask(REQUEST, session(verify=False))))")
    assert said.startswith("HTTP/1.1 403 ")
    assert SENTENCE.format("quay.io") in said


def test_plain_requests(house: House) -> None:
    said = house.client("""
        print(json.dumps([
            ask(REQUEST), ask(REQUEST, there(socket.AF_INET6)),
            ask(b"CONNECT ghcr.io:443 HTTP/1.1\\r\\nHost: ghcr.io:443\\r\\n\\r\\n"),
            ask(b"GET / HTTP/1.1\\r\\nHost: quay.io\\r\\nAccept: text/html\\r\\n\\r\\n"),
        ]))
    """)
    for answer in said[:2]:
        error = {"code": "DENIED", "message": SENTENCE.format("quay.io")}
        assert json.loads(answer.partition("\r\n\r\n")[2]) == {"errors": [error]}
    assert said[2].startswith(f"HTTP/1.1 403 {SENTENCE.format('ghcr.io')}\r\n")
    assert "<h1>Registry access denied by acme</h1>" in said[3]
    wait_until(
        lambda: (
            {tuple(seen[:3]) for seen in house.told("seen")}
            >= {("quay.io", "host", "127.0.0.1"), ("quay.io", "host", "::1")}
            | {("ghcr.io", "connect", "127.0.0.1")}
        ),
        2,
        "what was seen",
    )


def test_garbage_is_answered_or_dropped_and_hurts_nobody(house: House) -> None:
    said = house.client("""
        import os, random
        random.seed(1)
        hello = bytes([0x16, 3, 1])
        heads = [b"", hello + b"\\0\\0", hello + b"\\xff\\xff", hello + b"\\0\\x05\\1\\0\\0\\1\\0",
                 b"\\x15\\3\\1", b"SSH-2.0-x\\r\\n", b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n"]
        for round in range(200):
            with there() as sock:
                try:
                    sock.sendall(heads[round % len(heads)] + random.randbytes(round * 7))
                    if round % 3 == 0:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
                except OSError:
                    pass
        with there() as sock:
            try:
                while True:
                    sock.sendall(bytes(65536))
            except OSError as err:
                print(json.dumps([type(err).__name__, honest()]))
    """)
    assert said[0] in {"ConnectionResetError", "BrokenPipeError"}
    assert said[1] < 1
    assert house.beats(HEARTBEAT_SECONDS) >= 2


@pytest.mark.parametrize("first", ["", "G", "\\x16", "\\x16\\x03\\x01\\x02\\0"])
def test_slow_clients_do_not_keep_out_honest_ones(house: House, first: str) -> None:
    """Half of them are closed in one direction; then one more octet each, now and then."""
    said = house.client(f"""
        slow = [there() for _ in range(500)]
        for sock in slow:
            sock.sendall(b"{first}")
        for sock in slow[::20]:
            sock.shutdown(socket.SHUT_WR)
        took = []
        for _ in range(4):
            for sock in slow:
                try:
                    sock.send(b"x")
                except OSError:
                    pass
            took += [honest() for _ in range(5)]
        print(json.dumps(max(took)))
    """)
    assert said < 1
    assert house.beats(HEARTBEAT_SECONDS) >= 2


def test_silent_clients_are_let_go(house: House) -> None:
    said = house.client("""
        began, sock = time.monotonic(), there()
        sock.settimeout(9)
        try:
            ended = sock.recv(1)
        except ConnectionResetError:
            ended = b"reset"
        print(json.dumps([ended.decode(), time.monotonic() - began]))
    """)
    assert said[0] == "reset"
    assert 4.5 < said[1] < 6.5


def test_more_silent_clients_than_there_is_room(house: House) -> None:
    """The oldest go; honest clients come through, and nobody is forgotten by the daemon."""
    said = house.client("""
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
        silent = [there() for _ in range(2500)]
        print(json.dumps([honest() for _ in range(3)]))
    """)
    assert max(said) < 2, said
    assert house.beats(HEARTBEAT_SECONDS) >= 2


def test_a_thousand_at_once(house: House) -> None:
    before = int(house.status("VmRSS"))
    said = house.client(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
        context = ssl.create_default_context()
        def hello():
            theirs, ours = ssl.MemoryBIO(), ssl.MemoryBIO()
            session = context.wrap_bio(theirs, ours, server_hostname="quay.io")
            try:
                session.do_handshake()
            except ssl.SSLWantReadError:
                return ours.read()
        octets, socks = hello(), []
        for _ in range(1000):
            socks.append(there())
            socks[-1].sendall(octets)
        began = time.monotonic()
        answered = sum(sock.recv(1) == b"\\x16" for sock in socks)
        print(json.dumps([answered, time.monotonic() - began]))
        """,
        timeout=30,
    )
    assert said[0] == 1000
    assert int(house.status("VmHWM")) < MOST_KB + before
    assert house.beats(HEARTBEAT_SECONDS) >= 2
    print(f"RSS {before} kB, at most {house.status('VmHWM')} kB; {said[1]:.2f} s")  # noqa: T201


def test_only_root_speaks_for_the_daemon(house: House) -> None:
    """The socket's own mode keeps others away; behind it the responder looks for itself."""
    path = house.directory / "notice.sock"
    program = f"""
import json, socket
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(5)
try:
    sock.connect({str(path)!r})
    sock.sendall(b'{{"ping": 1}}\\n')
    print(json.dumps(sock.recv(100).decode()))
except OSError as err:
    print(json.dumps(type(err).__name__))
"""
    argv = ["/usr/bin/env", "python3", "-I", "-c", program]
    assert path.stat().st_mode & 0o777 == 0o600
    refused = house.box.run(argv, user=65_000, env={"PATH": "/usr/bin:/bin"}).stdout
    assert json.loads(refused) == "PermissionError"
    path.chmod(0o666)
    try:
        said = house.box.run(argv, user=65_000, env={"PATH": "/usr/bin:/bin"}).stdout
        assert json.loads(said) in {"", "ConnectionResetError", "BrokenPipeError"}
        # The control: root is listened to, and the daemon comes back in its place.
        assert "pong" in json.loads(house.box.run([sys.executable, *argv[2:]]).stdout)
    finally:
        path.chmod(0o600)
    wait_until(lambda: house.beats(0.5) > 0, 5, "the daemon to come back")


def test_a_responder_that_is_stopped_gives_no_beats(house: House) -> None:
    assert house.beats(HEARTBEAT_SECONDS) >= 2
    house.kill("STOP")
    try:
        house.beats(0.3)  # what was under way
        assert house.beats(HEARTBEAT_SECONDS) == 0
    finally:
        house.kill("CONT")
    wait_until(lambda: house.beats(0.5) > 0, 5, "it beats again")


def test_a_responder_that_hangs_lets_go_and_is_started_again(house: House) -> None:
    """Those it has accepted are reset; the new ones, and those not accepted yet, are told."""
    before = house.responder
    wait_until(lambda: house.beats(0.5) > 0, 5, "it beats")
    said = house.client(
        f"""
        import os, signal
        hello = bytes([0x16, 3, 1, 2, 0])
        held = [there() for _ in range(20)]
        for sock in held:
            sock.sendall(hello)
        time.sleep(0.5)  # it has read that
        os.kill({before}, signal.SIGSTOP)
        began, waiting = time.monotonic(), there()
        for sock in held:
            sock.sendall(b"x")
        waiting.settimeout(15)
        def ended(sock):
            sock.settimeout(10)
            try:
                return sock.recv(1).decode()
            except ConnectionResetError:
                return "reset"
        ends = [ended(sock) for sock in held]
        took = time.monotonic() - began
        print(json.dumps([ends, took, ask(REQUEST, waiting)[:12], honest()]))
        """,
        timeout=40,
    )
    assert set(said[0]) == {"reset"}
    # Three seconds of silence; by itself none would be let go of.
    assert 2.5 < said[1] < 4.9, said[1]
    assert said[2] == "HTTP/1.1 403"
    assert said[3] < 1
    assert any("silent" in line for line in house.told("log"))
    wait_until(lambda: house.responder != before and house.beats(0.5) > 0, 10, "another one")


def test_a_client_of_a_bare_address_gets_a_certificate_for_it(house: House) -> None:
    """And one of an authority that has not signed it; what Go says is in tests/docker."""
    argv = ["openssl", "s_client", "-noservername", "-showcerts", "-connect"]
    for shown, address in (("127.0.0.1", "127.0.0.1"), ("[::1]", "0:0:0:0:0:0:0:1")):
        done = house.box.run([*argv, f"{shown}:{house.port}"], check=False, input="").stdout
        end = "-----END CERTIFICATE-----\n"
        leaf, authority, *more = (
            house.box.run(["openssl", "x509", "-noout", "-text"], input=part + end).stdout
            for part in done.split(end)[:-1]
        )
        assert not more
        assert f"IP Address:{address}" in leaf
        assert "DNS:" not in leaf
        assert "CA:TRUE" in authority
        assert leaf.count(f"CN = {AUTHORITY}") == authority.count(f"CN = {AUTHORITY}") == 2
    assert ["", "sni", "::1", house.port] in house.told("seen")


def test_a_responder_that_is_killed_is_started_again_and_the_port_stays(house: House) -> None:
    before, port = house.responder, house.port
    house.kill("KILL")
    taken = house.client("""
        other = socket.socket()
        try:
            other.bind(("127.0.0.1", port))
        except OSError as err:
            print(json.dumps(err.errno == 98))
    """)
    assert taken is True
    wait_until(lambda: house.responder != before and house.beats(0.5) > 0, 10, "another one")
    assert house.port == port
    assert house.client("print(json.dumps(honest()))") < 1


PASSED = """
import os, socket, subprocess, sys
port = socket.create_server(("127.0.0.1", 0))
control = socket.socket(socket.AF_UNIX)
control.bind(sys.argv[1] + "/notice.sock")
control.listen()
for number, sock in enumerate((port, control)):
    os.dup2(sock.fileno(), 3 + number)
os.environ.update(LISTEN_FDS="2", LISTEN_FDNAMES="notice:notice")
start = "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid()); "
responder = start + "from ramnet.__main__ import main; sys.argv[1:] = ['notice']; main()"
made = subprocess.Popen([sys.executable, "-c", responder], pass_fds=(3, 4))
print('{"responder": %d, "daemon": %d}' % (made.pid, os.getpid()), flush=True)
os.environ["LISTEN_PID"] = str(os.getpid())
"""


def signs_of_life(manager: socket.socket, seconds: float) -> list[bytes]:
    found, end = [], time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        manager.settimeout(left)
        with contextlib.suppress(TimeoutError):
            found.append(manager.recv(100))
    return found


def test_with_the_sockets_of_systemd(tmp_path: Path) -> None:
    """Both have them, and neither starts the other; without any right to change its user."""
    path = str(tmp_path / "manager")
    with (
        Sandbox("passed", tmp_path) as box,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(path)
        env = {"PYTHONPATH": str(PYTHON_PATH), "NOTIFY_SOCKET": path}
        log = tmp_path / "daemon.log"
        argv = ["setpriv", "--bounding-set=-all", sys.executable, "-c", PASSED + DAEMON]
        daemon = box.popen([*argv, str(tmp_path)], log=log, env=env)
        house = House(box, daemon, log, tmp_path)
        wait_until(lambda: bool(house.told("beat")), 10, "the first beat", hint=daemon.tail())
        assert house.client("print(json.dumps(honest()))") < 1
        assert house.told("pid") == []
        responder = int(house.told("responder")[0])
        signs_of_life(manager, 0.1)
        assert len(signs_of_life(manager, 3.5)) >= 2
        box.run(["kill", "-KILL", str(house.told("daemon")[0])])  # nobody asks any more: it is idle
        signs_of_life(manager, 0.1)
        signs = signs_of_life(manager, 3.5)
        assert len(signs) >= 2
        assert set(signs) == {b"READY=1\nWATCHDOG=1"}
        box.run(["kill", "-STOP", str(responder)])
        signs_of_life(manager, 0.1)
        assert signs_of_life(manager, 2) == []


def test_without_them_and_without_the_right_there_is_none(tmp_path: Path) -> None:
    with Sandbox("none", tmp_path) as box:
        log = tmp_path / "daemon.log"
        argv = ["setpriv", "--bounding-set=-setuid", sys.executable, "-c", DAEMON, str(tmp_path)]
        house = House(
            box,
            box.popen(argv, log=log, env={"PYTHONPATH": str(PYTHON_PATH)}),
            log,
            tmp_path,
        )
        wait_until(lambda: bool(house.told("port")), 10, "what it says")
        assert house.told("port") == [None]
        assert "no right" in house.told("because")[0]


def test_it_ends_with_the_daemon(house: House) -> None:
    """The last one here: nothing is left of either."""
    there = house.box.path(f"/proc/{house.responder}")
    assert there.exists()
    house.daemon.kill()
    wait_until(lambda: not there.exists(), 5, "the end of the responder")
