"""The registries of the lab: real docker-registry servers over one storage.

Each server listens on one port of *every* address of its sandbox, with one certificate for all the
names, so any name may be moved to any address, and an address answers on other ports too.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

from ramnet.lab import image
from ramnet.lab.pki import Certificate
from ramnet.lab.process import Process
from ramnet.lab.programs import require
from ramnet.lab.sandbox import Sandbox

TLS_PORTS = (443, 5000, 8443)
PLAIN_PORTS = (80,)

_CONFIG = """\
version: 0.1
log:
  level: info
  accesslog:
    disabled: false
storage:
  filesystem:
    rootdirectory: {storage}
  delete:
    enabled: true
http:
  addr: "{address}"
  secret: lab
"""
_TLS = """\
  tls:
    certificate: {certificate}
    key: {key}
"""


class Registries:
    """docker-registry servers in a sandbox, all over the same storage."""

    def __init__(self, sandbox: Sandbox, directory: Path, certificate: Certificate) -> None:
        self.sandbox = sandbox
        self.storage = directory / "storage"
        self._directory = directory
        self._certificate = certificate
        self._servers: dict[str, Process] = {}

    def start(self) -> None:
        """Start a server for each port without waiting for them."""
        for port in TLS_PORTS:
            self.serve(f":{port}", tls=True)
        for port in PLAIN_PORTS:
            self.serve(f":{port}", tls=False)

    def serve(
        self, address: str, *, tls: bool, sandbox: Sandbox | None = None, more: str = ""
    ) -> Process:
        """Start one more server at ``host:port``, in another sandbox if one is given.

        ``more`` is added to its configuration. The address of a server that has ended may be
        used again; its log begins anew.
        """
        where = sandbox or self.sandbox
        stem = f"{where.name}{address}".replace(":", "_")
        text = _CONFIG.format(storage=self.storage, address=address)
        if tls:
            pair = self._certificate
            text += _TLS.format(certificate=pair.certificate, key=pair.key)
        text += more
        config = self._directory / f"{stem}.yml"
        config.write_text(text, encoding="utf-8")
        log = self._directory / f"{stem}.log"
        log.unlink(missing_ok=True)
        server = where.popen([require("docker-registry"), "serve", str(config)], log=log)
        self._servers[stem] = server
        return server

    def wait_ready(self) -> None:
        """Wait until every server listens."""
        for server in self._servers.values():
            server.wait_for_line("listening on")

    def stop(self) -> None:
        """End all servers."""
        for server in self._servers.values():
            server.kill()  # SIGTERM lets it drain connections, which takes seconds
        self._servers.clear()

    def add_image(
        self,
        repository: str,
        tag: str = "latest",
        *,
        files: Mapping[str, bytes] | None = None,
        filler: int = 0,
    ) -> str:
        """Put an image with busybox into the storage, at any time; return its digest.

        ``files`` go into a layer of their own: a text that no other image has makes an engine pull
        again. ``filler`` is a number of bytes that do not compress, for a pull that takes a while.
        """
        layers = [image.busybox()]
        extra = dict(files or {})
        if filler:
            numbers = random.Random(f"{repository}:{tag}")  # noqa: S311 - the same bytes every time
            extra["filler"] = numbers.randbytes(filler)
        if extra:
            layers.append(image.layer(extra))
        made = image.image(layers)
        image.store(self.storage, repository, tag, made)
        return made.digest

    def requests(self) -> tuple[str, ...]:
        """Return the requests that were served, as "METHOD PATH", in the order of each server."""
        found = []
        for server in self._servers.values():
            if server.log is not None:
                for line in server.log.read_text(encoding="utf-8", errors="replace").splitlines():
                    _, quote, rest = line.partition('] "')
                    if quote and " HTTP/" in rest:
                        found.append(rest.partition(" HTTP/")[0])
        return tuple(found)
