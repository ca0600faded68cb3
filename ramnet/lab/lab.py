"""The whole lab in one object: two machines, a wire, DNS, registries and, if asked, an engine.

    with Lab(engine=True) as lab, lab.capture() as capture:
        done = lab.engine.pull("evil.example/acme/app")
        leaked = capture.to(EVIL)

Nothing of it is in the machine's own network namespace, and nothing outlives it: the sandboxes end
with the process that made them, however that ends, and the janitor removes the rest.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from ramnet.errors import LabError
from ramnet.host.cgroups import mount_point
from ramnet.lab import janitor, topology, world
from ramnet.lab.capture import Capture
from ramnet.lab.dns import Dns, Record
from ramnet.lab.engine import Engine
from ramnet.lab.generator import Generator
from ramnet.lab.pki import Pki
from ramnet.lab.process import Process, let_go
from ramnet.lab.programs import PYTHON_PATH, require_all
from ramnet.lab.ramnet import Daemon
from ramnet.lab.registry import Registries
from ramnet.lab.sandbox import Sandbox, joining
from ramnet.lab.split import Layout, SplitRegistries

PROGRAMS = (
    *("busybox", "dnsmasq", "docker-registry", "ip", "mount", "nft", "nsenter", "openssl"),
    *("tcpdump", "unshare"),
)
ENGINE_PROGRAMS = ("docker", "dockerd", "iptables")

# The engine's group lies beside those that runc makes for containers: below the name of the lab, a
# container with the network of the host is no part of the engine.
ENGINES = "engines"
PROXIES = "proxies"
DOCKER_PROXY = PYTHON_PATH / "systemd/ramnet-docker-proxy"

LOCAL_REGISTRY = 5000  # the port of the registry on the client's own loopback


class Lab:
    """The lab; a context manager that takes everything down again, also when entering fails.

    ``engine`` starts dockerd (with ``engine_options``, keys of daemon.json), ``registries`` the
    registry servers. ``records`` are added to the world's DNS, whose default time to live is
    ``ttl`` seconds; ``certificate_names`` to what the registries' certificate is valid for.

    ``engine_cgroup`` makes the cgroup v2 group ``engine_group``, starts the engine in it, and its
    docker-proxy by the wrapper that leaves it. Without it the engine stays in the group of whoever
    made the lab, as on a machine where nobody gave it a slice.
    """

    client: Sandbox
    world: Sandbox
    dns: Dns
    untrusted_dns: Dns
    pki: Pki

    def __init__(
        self,
        *,
        engine: bool = False,
        engine_cgroup: bool = False,
        registries: bool = True,
        engine_options: Mapping[str, object] | None = None,
        records: Mapping[str, Record] | None = None,
        ttl: int = 60,
        certificate_names: Iterable[str] = (),
    ) -> None:
        self.name = f"{janitor.PREFIX}{secrets.token_hex(4)}"
        self.directory = Path(tempfile.gettempdir()) / self.name
        self._with_engine = engine
        self._with_engine_cgroup = engine_cgroup
        self._with_registries = registries
        self._engine_options = engine_options
        self._records = {**world.RECORDS, **(records or {})}
        self._ttl = ttl
        self._certificate_names = world.certificate_names() | set(certificate_names)
        self._registries: Registries | None = None
        self._engine: Engine | None = None
        self._containers = 0
        self._made = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        require_all(PROGRAMS + (ENGINE_PROGRAMS if self._with_engine else ()))
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def registries(self) -> Registries:
        """The registry servers."""
        if self._registries is None:
            raise LabError("this lab has no registries")
        return self._registries

    @property
    def engine(self) -> Engine:
        """The Docker engine."""
        if self._engine is None:
            raise LabError("this lab has no engine")
        return self._engine

    @property
    def engine_group(self) -> str:
        """The engine's cgroup as ``[scope] cgroups`` names it: relative to the cgroup2 mount."""
        return f"{self.name}/{ENGINES}"

    @property
    def engine_cgroup(self) -> Path:
        """The directory of the engine's cgroup. A program run there counts as the engine's."""
        if not self._with_engine_cgroup:
            raise LabError("this lab has no cgroup for its engine", hint="Lab(engine_cgroup=True)")
        return mount_point() / self.engine_group

    def run_as_engine(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,  # noqa: A002 - the name that subprocess.run uses
        env: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the client in the engine's cgroup; LabError when it fails."""
        whole = [*joining(self.engine_cgroup), *argv]
        return self.client.run(whole, input=input, env=env, timeout=timeout)

    def sandbox(self, name: str) -> Sandbox:
        """Start another sandbox without any connection; it ends with the lab."""
        sandbox = self._start_sandbox(name)
        sandbox.wait_ready()
        return sandbox

    def container(self) -> Sandbox:
        """Attach a sandbox to a bridge of the client, as Docker does, but without an engine."""
        self._containers += 1
        sandbox = self.sandbox(f"container{self._containers}")
        topology.add_container(self.client, sandbox, self._containers + 1)
        sandbox.set_resolvers(topology.DNS_V4)
        return sandbox

    def capture(self, *, everything: bool = False) -> Capture:
        """Start a capture of the SYNs that reach the far side; see ``Capture``."""
        file = self._folder("capture") / "far-side.pcap"
        capture = Capture(self.world, file, everything=everything)
        self._stack.callback(capture.abandon)
        capture.start()
        return capture

    def generator(
        self,
        targets: Iterable[tuple[str, int]],
        *,
        rate: float = 250.0,
        cgroup: Path | None = None,
    ) -> Generator:
        """Start attempting connects from the client; see ``Generator``."""
        log = self._folder("generator") / "counts"
        generator = Generator(self.client, log, targets, rate=rate, cgroup=cgroup)
        self._stack.callback(generator.abandon)
        generator.start()
        return generator

    def daemon(
        self, policy: str | None, *, config: str | None = None, start: bool = True
    ) -> Daemon:
        """Make a ramnet daemon in the client and, unless told otherwise, start it.

        Without ``config`` its engines' cgroup is ``engine_group``: the default one would be made in
        the machine's own hierarchy, and stay there.
        """
        if config is None:
            config = f'[scope]\ncgroups = ["{self.engine_group}"]\n'
        daemon = Daemon(self.client, self._folder("ramnet"), policy, config)
        self._stack.callback(daemon.abandon)
        if start:
            daemon.start()
        return daemon

    def local_registry(self, port: int = LOCAL_REGISTRY) -> Process:
        """Start a plain registry at ``localhost:port`` of the client, with the same images."""
        server = self.registries.serve(f"127.0.0.1:{port}", tls=False, sandbox=self.client)
        server.wait_for_line("listening on")
        return server

    def split(self, *layouts: Layout) -> SplitRegistries:
        """Start registries that send clients to other hosts; see ``SplitRegistries``.

        For a lab without the usual registries, which take every address.
        """
        if self._registries is not None:
            raise LabError("every address of this lab is taken", hint="Lab(registries=False)")
        folder = self._folder("split")
        made = SplitRegistries(self.world, folder, self.pki, self.dns.table, layouts)
        self._stack.callback(made.stop)
        made.start()
        for repository in world.IMAGES:
            made.registries.add_image(repository)
        return made

    def leftovers(self) -> list[str]:
        """After the end: say what is left of this lab on the machine. Empty is the only pass."""
        return janitor.leftovers(self.directory)

    def _build(self) -> None:
        self._start_janitor()
        self.directory.mkdir()
        self.client = self._start_sandbox("client")
        self.world = self._start_sandbox("world")
        self.pki = Pki(self._folder("pki"))
        self.client.environment["SSL_CERT_FILE"] = str(self.pki.ca)
        self.client.wait_ready()
        self.world.wait_ready()
        topology.connect(self.client, self.world)
        self.client.set_resolvers(topology.DNS_V4, topology.DNS_V6)
        if self._with_engine_cgroup:
            self.engine_cgroup.mkdir(parents=True)
            self.client.environment["RAMNET_PROXY_CGROUP"] = f"{self.name}/{PROXIES}"
        if self._with_engine:
            proxy = {"userland-proxy-path": str(DOCKER_PROXY)} if self._with_engine_cgroup else {}
            self._engine = Engine(
                self.client,
                self._folder("engine"),
                self.name,
                options={**proxy, **(self._engine_options or {})},
                cgroup=self.engine_cgroup if self._with_engine_cgroup else None,
            )
            # Ended with its sandbox: it keeps nothing that outlives the namespaces but cgroups.
            self._stack.callback(self._engine.abandon)
            self._engine.start(wait=False)
        self.dns = self._start_dns("dns", (topology.DNS_V4, topology.DNS_V6), self._records)
        self.untrusted_dns = self._start_dns(
            "untrusted-dns", (topology.UNTRUSTED_DNS_V4, topology.UNTRUSTED_DNS_V6), world.LIES
        )
        if self._with_registries:
            certificate = self.pki.issue("registries", self._certificate_names)
            self._registries = Registries(self.world, self._folder("registries"), certificate)
            self._stack.callback(self._registries.stop)
            self._registries.start()
            for repository in world.IMAGES:
                self._registries.add_image(repository)
            self._registries.wait_ready()
        self.dns.wait_ready()
        self.untrusted_dns.wait_ready()
        if self._engine is not None:
            self._engine.wait_ready()

    def _start_janitor(self) -> None:
        argv = [sys.executable, "-I", "-S", janitor.__file__, str(self.directory)]
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )
        self._stack.callback(self._finish, process)
        if process.stdout is None or process.stdout.readline() != b"ready\n":
            raise LabError("the janitor of the lab did not start")

    def _finish(self, process: subprocess.Popen[bytes]) -> None:
        """Let the janitor clean up, and say what it could not remove."""
        let_go(process)
        with process:  # which waits for its end
            # It gives up by itself, after CLEAN_SECONDS.
            left = b"" if process.stdout is None else process.stdout.read()
        if process.returncode:
            raise LabError("the lab left something behind", hint=left.decode(errors="replace"))

    def _start_sandbox(self, name: str) -> Sandbox:
        sandbox = Sandbox(name, self._folder(name), {"RAMNET_LAB": self.name})
        self._stack.callback(sandbox.close)
        sandbox.start()
        return sandbox

    def _start_dns(self, name: str, addresses: tuple[str, ...], table: Mapping[str, Record]) -> Dns:
        dns = Dns(self.world, self._folder(name), addresses, table, ttl=self._ttl)
        self._stack.callback(dns.stop)
        dns.start(wait=False)
        return dns

    def _folder(self, name: str) -> Path:
        """Make a directory for one part of the lab; later ones of the same name get a number."""
        folder = self.directory / name
        while folder.exists():
            self._made += 1
            folder = self.directory / f"{name}-{self._made}"
        folder.mkdir()
        return folder
