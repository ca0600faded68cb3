"""Registries as the big ones are: the API on one host, tokens on another, layers on a third.

Real servers: docker-registry over the storage of the lab, which sends whoever asks for a blob to
another host (307, its storage middleware ``redirect``); a token server; and nginx, which has all
the names and the certificate, and serves the blobs from the storage's own files. As with S3, a blob
host answers 400 to a request that still carries an ``Authorization`` of the registry's.

    with Lab(registries=False, records=split.RECORDS) as lab:
        servers = lab.split(HUB, ECR)
        servers.blobs_at(HUB, "elsewhere.example")
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ramnet.errors import LabError
from ramnet.lab import tokens
from ramnet.lab.dns import Record, records
from ramnet.lab.nginx import Nginx, Served, Site
from ramnet.lab.pki import Pki
from ramnet.lab.process import Process, wait_until
from ramnet.lab.programs import require
from ramnet.lab.registry import Registries
from ramnet.lab.sandbox import Sandbox

PROGRAMS = ("docker-registry", "nginx", "openssl")

# On the loopback of the world: the backends of nginx.
TOKEN_PORT = 7000
FIRST_PORT = 7001

LOG_SECONDS = 5.0
CNAME_LIMIT = 8  # names in a chain, more than any record of the lab has

# `htpasswd -B` of the token server's password: a registry with Basic reads nothing but bcrypt.
BASIC_USER, BASIC_PASSWORD = "AWS", tokens.PASSWORD
_HTPASSWD = f"{BASIC_USER}:$2y$04$abcdefghijklmnopqrstuuJ8gJ.h9VpcX8WvvtDqTpP.M65YL5CXO\n"

_BEARER = """\
auth:
  token:
    realm: {realm}
    service: {service}
    issuer: {issuer}
    rootcertbundle: {bundle}
"""
_BASIC = """\
auth:
  htpasswd:
    realm: https://{host}/
    path: {path}
"""
_REDIRECT = """\
middleware:
  storage:
    - name: redirect
      options:
        baseurl: https://{host}/
"""

_PROXY = """\
        location {path} {{
            proxy_pass http://127.0.0.1:{port};
            proxy_http_version 1.1;
            proxy_request_buffering off;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-Proto {scheme};
        }}"""
_FILES = """\
        if ($http_authorization) {{ return 400; }}
        root {storage};"""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of one registry live.

    ``realm`` is the host and path of its token server, without one (``basic``) the registry takes
    Basic credentials or (neither) anyone. ``blobs`` is the host that it redirects to for blobs; it
    serves them itself if that is None. Without ``tls`` it speaks plain HTTP.
    """

    api: str
    realm: str | None = None
    service: str = ""
    blobs: str | None = None
    basic: bool = False
    tls: bool = True
    port: int = 443


HUB = Layout(
    api="registry-1.docker.io",
    realm="auth.docker.io/token",
    service="registry.docker.io",
    blobs="production.cloudfront.docker.com",
)
ECR = Layout(
    api="123456789012.dkr.ecr.eu-west-1.amazonaws.com",
    basic=True,
    blobs="prod-eu-west-1-starport-layer-bucket.s3.eu-west-1.amazonaws.com",
)
QUAY = Layout(api="quay.io", realm="quay.io/v2/auth", service="quay.io", blobs="cdn01.quay.io")

# Names beyond those of the world, which has the hosts of Docker Hub and Quay. The first two are a
# blob host of Docker Hub for clients in another region, and one that nobody catalogued.
HUB_REGIONAL = "docker-images-prod.s3.dualstack.eu-west-1.amazonaws.com"
UNLISTED = "layers.blobs.example"
RECORDS = records(
    {
        "production.cloudfront.docker.com": ["198.51.100.81", "2001:db8::81"],
        HUB_REGIONAL: ["198.51.100.82", "2001:db8::82"],
        UNLISTED: "edge.blobs.example",
        "edge.blobs.example": ["198.51.100.83", "2001:db8::83"],
        ECR.api: ["198.51.100.84"],
        "prod-eu-west-1-starport-layer-bucket.s3.eu-west-1.amazonaws.com": ["198.51.100.85"],
        "cdn01.quay.io": ["198.51.100.86", "2001:db8::86"],
    }
)


class SplitRegistries:
    """Split registries in a sandbox, over one storage, at the addresses of their names.

    ``table`` are the records of the lab's DNS; the certificate is for all their names.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        directory: Path,
        pki: Pki,
        table: Mapping[str, Record],
        layouts: tuple[Layout, ...],
    ) -> None:
        self.sandbox = sandbox
        self._directory = directory
        self._table = dict(table)
        self._layouts = {layout.api: layout for layout in layouts}
        self._ports = {layout.api: FIRST_PORT + n for n, layout in enumerate(layouts)}
        self._more: dict[str, Site] = {}
        self._blob_hosts = {layout.blobs for layout in layouts if layout.blobs is not None}
        certificate = pki.issue("split", table)
        self._signing = pki.issue("tokens", ["tokens.example"])
        self._servers: dict[str, Process] = {}
        self._tokens: Process | None = None
        self._nginx = Nginx(sandbox, directory, certificate)
        self.registries = Registries(sandbox, directory, certificate)

    def start(self) -> None:
        """Start everything and return when it serves."""
        for program in PROGRAMS:
            require(program)
        (self._directory / "htpasswd").write_text(_HTPASSWD, encoding="utf-8")
        argv = [sys.executable, "-I", tokens.__file__, str(TOKEN_PORT)]
        argv += [str(self._signing.certificate), str(self._signing.key)]
        self._tokens = self.sandbox.popen(argv, log=self._directory / "tokens.log")
        for layout in self._layouts.values():
            self._start_server(layout)
        self._tokens.wait_for_line(tokens.READY)
        self.registries.wait_ready()
        self._nginx.start(self._sites())

    def stop(self) -> None:
        """End all servers."""
        self._nginx.stop()
        self.registries.stop()
        tokens_, self._tokens = self._tokens, None
        if tokens_ is not None:
            tokens_.kill()

    def served(self, host: str | None = None, *, least: int = 0) -> tuple[Served, ...]:
        """Return the requests that were served, of one host or of all, in order.

        nginx writes a request down after the client has the answer: ``least`` waits for so many.
        """
        wait_until(lambda: len(self._nginx.served(host)) >= least, LOG_SECONDS, f"{least} requests")
        return self._nginx.served(host)

    def blobs_at(self, layout: Layout, host: str | None) -> None:
        """Let a registry redirect to another host for its blobs, from now on.

        The former host still has them, for whoever asks there.
        """
        changed = replace(self._layouts[layout.api], blobs=host)
        self._layouts[layout.api] = changed
        if host is not None:
            self._blob_hosts.add(host)
        self._servers[layout.api].kill()
        self._start_server(changed)
        self.registries.wait_ready()
        self._nginx.start(self._sites())

    def serve(self, site: Site) -> None:
        """Serve one site more, or another one in its place; its host needs a record of the lab."""
        self._more[site.host] = site
        self._nginx.start(self._sites())

    def addresses(self, host: str) -> tuple[str, ...]:
        """Return the addresses of a host, through its CNAMEs."""
        name = host
        for _ in range(CNAME_LIMIT):
            record = self._table.get(name)
            if record is None:
                break
            if record.cname is None:
                return record.addresses
            name = record.cname
        raise LabError(f"the DNS of the lab has no address of {host}")

    def _start_server(self, layout: Layout) -> None:
        text = ""
        if layout.realm is not None:
            text += _BEARER.format(
                realm=f"https://{layout.realm}",
                service=layout.service,
                issuer=tokens.ISSUER,
                bundle=self._signing.certificate,
            )
        elif layout.basic:
            text += _BASIC.format(host=layout.api, path=self._directory / "htpasswd")
        if layout.blobs is not None:
            text += _REDIRECT.format(host=layout.blobs)
        address = f"127.0.0.1:{self._ports[layout.api]}"
        self._servers[layout.api] = self.registries.serve(address, tls=False, more=text)

    def _sites(self) -> list[Site]:
        """Return what nginx serves: each host once, with all that it is to somebody."""
        bodies: dict[tuple[str, int, bool], list[str]] = {}

        def put(host: str, body: str, *, port: int = 443, tls: bool = True) -> None:
            known = bodies.setdefault((host, port, tls), [])
            if body not in known:
                known.append(body)

        for layout in self._layouts.values():
            scheme = "https" if layout.tls else "http"
            backend = _PROXY.format(path="/v2/", port=self._ports[layout.api], scheme=scheme)
            put(layout.api, backend, port=layout.port, tls=layout.tls)
            if layout.realm is not None:
                host, _, path = layout.realm.partition("/")
                put(host, _PROXY.format(path=f"= /{path}", port=TOKEN_PORT, scheme="https"))
        for host in self._blob_hosts - self._more.keys():
            put(host, _FILES.format(storage=self.registries.storage))
        found = [
            Site(host, self.addresses(host), "\n".join(texts), port=port, tls=tls)
            for (host, port, tls), texts in bodies.items()
        ]
        return [*found, *self._more.values()]
