"""nginx in a sandbox: sites of the lab, each a host name with what is behind it.

It listens at exactly the addresses of its sites, so it can be beside servers at other addresses. A
host that it does not serve is answered with 421, as by a CDN that was asked for a foreign name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ramnet.lab.pki import Certificate
from ramnet.lab.process import Process
from ramnet.lab.programs import require
from ramnet.lab.sandbox import Sandbox

# In the notice that tells how it waits for events nginx says that its sockets are open.
_READY = "event method"

# One process: nothing is left when it is killed. What it writes stays in its own directory, where
# a distribution has compiled in others.
_CONFIG = """\
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr notice;
events {{ worker_connections 256; }}
http {{
    log_format lab '$host $request_method $request_uri $status';
    access_log {directory}/access.log lab;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    client_max_body_size 0;
    server_names_hash_bucket_size 256;
    default_type application/octet-stream;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
{servers}}}
"""
_SERVER = """\
    server {{
{listen}        server_name {name};
{body}
    }}
"""


@dataclass(frozen=True, slots=True)
class Site:
    """One host name at some addresses; ``body`` is the inside of its ``server`` block."""

    host: str
    addresses: tuple[str, ...]
    body: str
    port: int = 443
    tls: bool = True


@dataclass(frozen=True, slots=True)
class Served:
    """A request as nginx has logged it."""

    host: str
    method: str
    uri: str
    status: int


class Nginx:
    """One nginx."""

    def __init__(self, sandbox: Sandbox, directory: Path, certificate: Certificate) -> None:
        self.sandbox = sandbox
        self._directory = directory
        self._certificate = certificate
        self._process: Process | None = None

    def start(self, sites: Iterable[Site]) -> None:
        """Serve these sites, instead of those before; return when it does."""
        self.stop()
        config = self._directory / "nginx.conf"
        pair = self._certificate
        text = _CONFIG.format(
            directory=self._directory,
            certificate=pair.certificate,
            key=pair.key,
            servers=_servers(tuple(sites)),
        )
        config.write_text(text, encoding="utf-8")
        # A log for each start: the line that tells readiness is then this one's.
        log = self._directory / "nginx.log"
        log.unlink(missing_ok=True)
        argv = [require("nginx"), "-e", "stderr", "-p", str(self._directory), "-c", str(config)]
        self._process = self.sandbox.popen(argv, log=log)
        self._process.wait_for_line(_READY)

    def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    def served(self, host: str | None = None) -> tuple[Served, ...]:
        """Return the requests so far, of one host or of all, in order."""
        log = self._directory / "access.log"
        if not log.exists():
            return ()
        rows = [line.split(" ") for line in log.read_text(encoding="utf-8").splitlines()]
        # What was no HTTP has no method and no URI.
        found = [Served(row[0], row[1], row[2], int(row[3])) for row in rows if len(row) == 4]  # noqa: PLR2004 - as in log_format
        return tuple(one for one in found if host in (None, one.host))


def _servers(sites: tuple[Site, ...]) -> str:
    doors: dict[tuple[str, int], bool] = {}
    text = []
    for site in sites:
        listen = []
        for address in site.addresses:
            doors[address, site.port] = site.tls
            listen.append(_listen(address, site.port, tls=site.tls))
        text.append(_SERVER.format(listen="".join(listen), name=site.host, body=site.body))
    strangers = "".join(
        _listen(address, port, tls=tls, option=" default_server")
        for (address, port), tls in doors.items()
    )
    text.append(_SERVER.format(listen=strangers, name="_", body="        return 421;"))
    return "".join(text)


def _listen(address: str, port: int, *, tls: bool, option: str = "") -> str:
    host = f"[{address}]" if ":" in address else address
    return f"        listen {host}:{port}{' ssl' if tls else ''}{option};\n"
