"""The DNS of the lab: a real dnsmasq in a sandbox, with records that can be changed while it runs.

Addresses live in a hosts file that dnsmasq reads again on SIGHUP, so the usual change loses no
query. CNAMEs and times to live of single names are start options: changing those restarts dnsmasq,
which leaves a gap of some 30 ms without an answer. dnsmasq permutes the order of several addresses
from answer to answer by itself.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from ramnet.errors import LabError
from ramnet.lab.process import Process, wait_until
from ramnet.lab.programs import require
from ramnet.lab.sandbox import Sandbox

RELOAD_SECONDS = 5.0  # a reload takes some 5 ms
_QUERY = re.compile(r" query\[(?P<kind>[^\]]+)\] (?P<name>\S+) from (?P<client>\S+)$")


@dataclass(frozen=True, slots=True)
class Record:
    """What the world says about one name: addresses (A and AAAA) or the target of a CNAME.

    ``ttl`` is in seconds; None means the server's default.
    """

    addresses: tuple[str, ...] = ()
    cname: str | None = None
    ttl: int | None = None

    def __post_init__(self) -> None:
        if bool(self.addresses) == (self.cname is not None):
            raise LabError("a record has either addresses or a CNAME")
        for address in self.addresses:
            try:
                ip_address(address)
            except ValueError as err:
                raise LabError(f"a record holds {address!r}, not an IP address") from err


@dataclass(frozen=True, slots=True)
class Asked:
    """One query that reached the server."""

    kind: str  # "A", "AAAA", ...
    name: str
    client: str


def records(table: Mapping[str, str | Sequence[str]]) -> dict[str, Record]:
    """Build records from a small table: a list of addresses, or a string that is a CNAME."""
    return {
        name: Record(cname=value) if isinstance(value, str) else Record(addresses=tuple(value))
        for name, value in table.items()
    }


class Dns:
    """One dnsmasq. ``addresses`` are those of the sandbox on which it listens, port 53.

    ``ttl`` is the default time to live in seconds. Names without a record get NXDOMAIN, a name
    without an address of the asked type an empty answer.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        directory: Path,
        addresses: Sequence[str],
        table: Mapping[str, Record],
        *,
        ttl: int = 60,
    ) -> None:
        self.sandbox = sandbox
        self.addresses = tuple(addresses)
        self.ttl = ttl
        self._records = dict(table)
        self._hosts = directory / "hosts"
        self._log = directory / "dnsmasq.log"
        self._process: Process | None = None
        self._lock = threading.RLock()  # a rotation changes records from its own thread

    @property
    def table(self) -> dict[str, Record]:
        """The records as they are now."""
        with self._lock:
            return dict(self._records)

    def start(self, *, wait: bool = True) -> None:
        """Start dnsmasq; with ``wait`` return when it answers."""
        self._write_hosts()
        argv = [require("dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null"]
        argv += ["--no-resolv", "--no-hosts", "--no-poll", "--user=root", "--pid-file"]
        argv += ["--bind-interfaces", *(f"--listen-address={one}" for one in self.addresses)]
        argv += [f"--addn-hosts={self._hosts}", f"--local-ttl={self.ttl}", "--cache-size=0"]
        argv += ["--address=/#/", "--log-queries", "--log-facility=-", *self._options()]
        before = self._log_size()
        self._process = self.sandbox.popen(argv, log=self._log)
        if wait:
            self.wait_ready(before)

    def wait_ready(self, offset: int = 0) -> None:
        """Wait until dnsmasq has read its hosts file, which it does after it has bound port 53."""
        self._wait_for_read(offset)

    def stop(self) -> None:
        """End dnsmasq."""
        process, self._process = self._process, None
        if process is not None:
            process.stop()

    def update(self, changes: Mapping[str, Record | None]) -> None:
        """Change records (None removes one) and return when the server answers with them."""
        with self._lock:
            old = self._options()
            for name, record in changes.items():
                if record is None:
                    self._records.pop(name, None)
                else:
                    self._records[name] = record
            if self._process is None:
                return
            if self._options() != old:
                self._process.kill()  # it has no state, and SIGTERM takes longer
                self.start()
                return
            before = self._log_size()
            self._write_hosts()
            self._process.signal(signal.SIGHUP)
            self._wait_for_read(before)

    def set(self, name: str, *addresses: str) -> None:
        """Give one name new addresses."""
        self.update({name: Record(addresses=addresses)})

    def asked(self, name: str | None = None) -> tuple[Asked, ...]:
        """Return the queries that reached the server, of one name or of all, in order."""
        found = (_QUERY.search(line) for line in self._read_log().splitlines())
        asked = (Asked(hit["kind"], hit["name"].lower(), hit["client"]) for hit in found if hit)
        return tuple(query for query in asked if name in (None, query.name))

    @contextmanager
    def rotating(
        self, name: str, pool: Iterable[str], *, size: int = 1, period: float = 0.5
    ) -> Iterator[None]:
        """While inside, serve ``size`` addresses of a pool, others after every ``period`` seconds.

        This is what a CDN does; the name's former record comes back at the end.
        """
        addresses = tuple(pool)
        former = self.table.get(name)
        over = threading.Event()
        failure: list[LabError] = []

        def show(first: int) -> None:
            window = (addresses[(first + step) % len(addresses)] for step in range(size))
            self.set(name, *window)

        def turn() -> None:
            first = size
            while not over.wait(period):
                try:
                    show(first)
                except LabError as err:
                    failure.append(err)
                    return
                first += size

        show(0)
        thread = threading.Thread(target=turn, name=f"rotate {name}")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.update({name: former})
        if failure:
            raise failure[0]

    def _options(self) -> list[str]:
        """Return the start options for what a hosts file cannot say."""
        options = []
        for name, record in sorted(self._records.items()):
            lifetime = "" if record.ttl is None else f",{record.ttl}"
            if record.cname is not None:
                options.append(f"--cname={name},{record.cname}{lifetime}")
            elif record.ttl is not None:
                options += [
                    f"--host-record={name},{address}{lifetime}" for address in record.addresses
                ]
        return options

    def _write_hosts(self) -> None:
        lines = [
            f"{address} {name}\n"
            for name, record in sorted(self._records.items())
            if record.ttl is None
            for address in record.addresses
        ]
        beside = self._hosts.with_suffix(".new")
        beside.write_text("".join(lines), encoding="utf-8")
        beside.rename(self._hosts)

    def _read_log(self) -> str:
        if not self._log.exists():
            return ""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def _log_size(self) -> int:
        return len(self._read_log())

    def _wait_for_read(self, offset: int) -> None:
        process = self._process
        if process is None:
            raise LabError("dnsmasq was not started")

        def done() -> bool:
            ended = process.returncode is not None
            if f"read {self._hosts} " in self._read_log()[offset:]:
                return True
            if ended:
                raise LabError("dnsmasq ended at once", hint=process.tail())
            return False

        wait_until(done, RELOAD_SECONDS, "dnsmasq did not read its records", hint=process.tail())
