"""Reads the configuration of the container engines of this machine, and what runs of them.

What is missing says nothing; what cannot be read is told, see ``host/conffiles.py``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from ramnet.core.allow import AllowList
from ramnet.core.config import Config, ScopeMode
from ramnet.core.engineconf import Context, Finding, findings
from ramnet.core.enginefacts import (
    UNITS,
    Desktop,
    EngineName,
    Fact,
    FoundProxy,
    RootlessSetup,
    Unit,
    Unreadable,
    printable,
)
from ramnet.core.enginefiles import (
    config_file,
    daemon_json,
    default_docker,
    dockerd_flags,
    environment_file,
    process_environment,
    proxies_of,
    unit_text,
)
from ramnet.core.enginemirrors import (
    buildkitd_toml,
    containerd_config,
    hosts_toml,
    registries_conf,
)
from ramnet.errors import HostError
from ramnet.host import cgroups, engines, helper, resolvconf
from ramnet.host.conffiles import MAX_FILES, facts_of, names_in, text_of

DAEMON_JSON = "etc/docker/daemon.json"
DEFAULT_DOCKER = "etc/default/docker"
CONTAINERD_CONFIG = "etc/containerd/config.toml"
CERTS_D = "etc/containerd/certs.d"
REGISTRIES_CONF = "etc/containers/registries.conf"
BUILDKITD_TOML = "etc/buildkit/buildkitd.toml"
# systemd.unit(5): what comes first hides what comes later.
UNIT_FOLDERS = (
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
)
# systemd.exec(5): the search path of services.
_SYSTEMD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
# moby, daemon/config/config_linux.go (lookupBinPath).
_PROXY_FOLDERS = (
    *("/usr/local/libexec/docker", "/usr/libexec/docker"),
    *("/usr/local/lib/docker", "/usr/lib/docker"),
)
_BOOTED = "run/systemd/system"  # sd_booted(3)
_ROOTLESS = (".config/docker/daemon.json", ".config/systemd/user/docker.service")
_DESKTOP_PLACES = ("run/guest-services", "mnt/wsl/docker-desktop*")
_DESKTOP_WORDS = ("docker-desktop", "guest-services", "com.docker.")
_SOCKETS = ("run/docker.sock", "var/run/docker.sock")


def engine_findings(
    config: Config,
    allowed: AllowList | None,
    *,
    mode: ScopeMode | None = None,
    root: Path = Path("/"),
) -> tuple[Finding, ...]:
    """Say what the settings and processes of this machine's engines mean for enforcement.

    ``allowed`` is the policy, None where it cannot be read; ``mode`` the rung of the scope in use,
    by default what is configured. Files and processes are those below ``root``. Takes some ten
    milliseconds, by reading files; raises nothing.
    """
    context = Context(
        config, mode or config.scope.mode, allowed, _resolvers(config, root), _mount_point()
    )
    asked = helper.configured() and root == Path("/")
    return findings(helper.facts() if asked else engine_facts(root), context)


def engine_facts(root: Path = Path("/")) -> tuple[Fact, ...]:
    """Collect what is known of the engines of the machine whose files are below ``root``."""
    running, others = engines.look(root / "proc")
    facts: list[Fact] = [one.engine for one in running] + others
    facts += facts_of(root, DAEMON_JSON, daemon_json)
    for one in running:
        facts += _of_process(root, one)
    facts += _units(root)
    facts += facts_of(root, DEFAULT_DOCKER, default_docker)
    facts += _containerd(root)
    facts += _podman(root)
    facts += facts_of(root, BUILDKITD_TOML, buildkitd_toml)
    facts += _rootless(root)
    facts += _desktop(root)
    return tuple(facts)


def _resolvers(config: Config, root: Path) -> frozenset[str]:
    servers = config.dns.servers
    if not servers:
        found = resolvconf.read(str(root / "etc/resolv.conf"))
        path = str(root / resolvconf.UPSTREAMS.lstrip("/"))
        servers = (*found, *resolvconf.upstreams(found, path))
    return frozenset(map(str, servers))


def _mount_point() -> str:
    try:
        return str(cgroups.mount_point())
    except HostError:
        return cgroups.NFT_ROOT


# --- Docker


def _of_process(root: Path, one: engines.Running) -> Iterator[Fact]:
    environment = process_environment(one.environ)
    yield from proxies_of(environment, str(one.engine))
    if one.engine.name is EngineName.DOCKERD:
        yield from _found_proxies(root, environment.get("PATH", ""), str(one.engine))
        yield from dockerd_flags(one.words, str(one.engine))
        path = config_file(one.words).lstrip("/")
        if path and path != DAEMON_JSON and one.files:
            yield from facts_of(root, path, daemon_json)


def _units(root: Path) -> Iterator[Fact]:
    booted = (root / _BOOTED).is_dir()
    for name, engine in UNITS.items():
        fragments: list[tuple[str, bytes]] = []
        installed = False
        for path in _fragments(root, name):
            source = f"/{printable(path)}"
            data = text_of(root / path, source)
            if isinstance(data, Unreadable):
                yield data
            elif data is not None:
                installed |= path.endswith(f"/{name}")
                fragments.append((source, data))
        said = unit_text(fragments)
        environment = {key: value for key, (value, _) in said.environment.items()}
        sources = {key: source for key, (_, source) in said.environment.items()}
        for path in _environment_files(root, said.files):
            source = f"/{printable(path)}"
            data = text_of(root / path, source)
            if isinstance(data, Unreadable):
                yield data
            elif data is not None:
                values, faults = environment_file(data, source)
                environment |= values
                sources |= dict.fromkeys(values, source)
                yield from faults
        for proxy in proxies_of(environment, name):
            yield replace(proxy, source=sources[proxy.key])
        if engine is EngineName.DOCKERD:
            yield from dockerd_flags(said.command, name)
            if booted and installed:
                yield from _found_proxies(root, environment.get("PATH", _SYSTEMD_PATH), name)
        yield from said.faults
        if booted and installed:
            yield Unit(name, engine, said.slice, name)


def _found_proxies(root: Path, path: str, source: str) -> Iterator[FoundProxy]:
    """Find docker-proxy as dockerd does: up to Docker 24 on its PATH, then in folders first.

    Which of the two this one is cannot be told without asking it: both are yielded.
    """
    folders = path.split(":")
    for places in (folders, [*_PROXY_FOLDERS, *folders]):
        names = (f"{folder}/docker-proxy" for folder in places if folder.startswith("/"))
        found = next(
            (
                name
                for name in names
                if (root / name.lstrip("/")).is_symlink()
                or os.access(root / name.lstrip("/"), os.X_OK)
            ),
            None,
        )
        if found is not None:
            yield FoundProxy(_target(root / found.lstrip("/")) or found, source)


def _target(link: Path) -> str:
    try:
        return os.readlink(link)  # noqa: PTH115 - the text of the link is wanted
    except OSError:
        return ""


def _fragments(root: Path, unit: str) -> list[str]:
    """Return the files of a unit: itself, and its drop-ins, each name from the first folder."""
    files = [f"{folder}/{unit}" for folder in UNIT_FOLDERS]
    found = [path for path in files if os.path.lexists(root / path)][:1]
    drop_ins: dict[str, str] = {}
    for folder in UNIT_FOLDERS:
        for name in names_in(root, f"{folder}/{unit}.d", ".conf")[0]:
            drop_ins.setdefault(name, f"{folder}/{unit}.d/{name}")
    return found + [drop_ins[name] for name in sorted(drop_ins)][:MAX_FILES]


def _environment_files(root: Path, patterns: Iterable[str]) -> Iterator[str]:
    for pattern in patterns:
        below = pattern.lstrip("/")
        if not any(char in below for char in "*?["):
            yield below
            continue
        folder, _, last = below.rpartition("/")
        names, _ = names_in(root, folder)
        yield from (f"{folder}/{name}" for name in names if fnmatchcase(name, last))


# --- containerd and Podman


def _containerd(root: Path) -> Iterator[Fact]:
    source = f"/{CONTAINERD_CONFIG}"
    data = text_of(root / CONTAINERD_CONFIG, source)
    folders: tuple[str, ...] = ()
    if isinstance(data, Unreadable):
        yield data
    elif data is not None:
        facts, folders = containerd_config(data, source)
        yield from facts
    for folder in dict.fromkeys((CERTS_D, *(one.strip("/") for one in folders))):
        registries, faults = names_in(root, folder)
        yield from faults
        for registry in registries:
            parse = partial(hosts_toml, registry)
            yield from facts_of(root, f"{folder}/{registry}/hosts.toml", parse)


def _podman(root: Path) -> Iterator[Fact]:
    yield from facts_of(root, REGISTRIES_CONF, registries_conf)
    names, faults = names_in(root, f"{REGISTRIES_CONF}.d", ".conf")
    yield from faults
    for name in names:
        yield from facts_of(root, f"{REGISTRIES_CONF}.d/{name}", registries_conf)


# --- what is out of reach


def _rootless(root: Path) -> Iterator[Fact]:
    homes, _ = names_in(root, "home")
    for home in homes:
        for name in _ROOTLESS:
            path = f"home/{home}/{name}"
            try:
                uid = (root / path).lstat().st_uid
            except OSError:
                continue
            yield RootlessSetup(f"/{printable(path)}", uid)


def _desktop(root: Path) -> Iterator[Fact]:
    for pattern in _DESKTOP_PLACES:
        folder, _, last = pattern.rpartition("/")
        for path in sorted((root / folder).glob(last))[:1]:
            yield Desktop(f"/{path.relative_to(root)}")
    for socket in _SOCKETS:
        try:
            target = os.readlink(root / socket)  # noqa: PTH115 - the text of the link is wanted
        except OSError:
            continue
        if any(word in target for word in _DESKTOP_WORDS):
            yield Desktop(f"/{socket} leads to {target}")
    release = text_of(root / "proc/sys/kernel/osrelease", "")
    if isinstance(release, bytes) and b"linuxkit" in release:
        yield Desktop(f"the kernel {release.decode('ascii', 'replace').strip()}")
