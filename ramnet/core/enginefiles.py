"""The settings of container engines, from the text of the files that hold them.

daemon.json and the flags of dockerd, units of systemd, environments. Any bytes give facts; what
does not parse is a fact as well (``Unreadable``), without a word of the text, which may hold
passwords.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from ramnet.core.enginefacts import (
    Api,
    ContainerDns,
    Endpoint,
    Fact,
    Insecure,
    Mirror,
    Proxy,
    Snapshotter,
    Unreadable,
    Userland,
    endpoint,
    printable,
)
from ramnet.core.enginetables import MAX_ITEMS, Table, read_json, text_at, texts_at
from ramnet.core.textfile import kind_of

DOCKER_HUB = "docker.io"
DOCKER_OPTS = "DOCKER_OPTS"  # the flags of dockerd, in /etc/default/docker

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_NO_PROXY = "NO_PROXY"
_LISTS = {
    "registry-mirror": "registry-mirrors",
    "insecure-registry": "insecure-registries",
    "host": "hosts",
    "dns": "dns",
}
_TEXTS = ("userland-proxy-path", "http-proxy", "https-proxy", "no-proxy", "config-file")
_SWITCH = "userland-proxy"
_NO = ("0", "f", "false")  # strconv.ParseBool of Go, in lower case

# --- Docker


def daemon_json(data: bytes, source: str) -> Iterator[Fact]:
    """Yield what a daemon.json says."""
    table = read_json(data)
    if isinstance(table, str):
        yield Unreadable(source, table)
        return
    proxies = table.get("proxies")
    if isinstance(proxies, dict):
        table = proxies | table
    elif proxies is not None:
        yield Unreadable(source, f"proxies is {kind_of(proxies)}, not a table")
    yield from _dockerd(table, source)


def dockerd_flags(words: Sequence[str], source: str) -> tuple[Fact, ...]:
    """Return what the arguments of dockerd say."""
    return tuple(_dockerd(_flags(words), source))


def config_file(words: Sequence[str]) -> str:
    """Return the daemon.json that the arguments of dockerd name; empty when they name none."""
    return str(_flags(words).get("config-file", ""))


def _flags(words: Sequence[str]) -> Table:
    """Read flags as pflag does, into the keys of daemon.json."""
    table: Table = {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if word.startswith("-H"):  # with its value behind a blank, "=" or nothing at all
            value = word[2:].removeprefix("=")
            name, equals = "--host", value
        if not name.startswith("--"):
            continue
        name = name[2:]
        if name == _SWITCH:
            table[name] = value.lower() not in _NO
        elif name in _LISTS or name in _TEXTS:
            value = value if equals else next(rest, "")
            if name in _TEXTS:
                table[name] = value
            else:
                table.setdefault(_LISTS[name], []).append(value)
    return table


def _dockerd(table: Table, source: str) -> Iterator[Fact]:
    faults: list[Unreadable] = []
    direct = bool(text_at(table, "no-proxy", source, faults))
    for key in ("http-proxy", "https-proxy"):
        if url := text_at(table, key, source, faults):
            yield Proxy(endpoint(url, "http"), key, source, direct)
    for url in texts_at(table, "registry-mirrors", source, faults):
        yield Mirror(DOCKER_HUB, endpoint(url, "https"), source)
    for text in texts_at(table, "insecure-registries", source, faults):
        yield Insecure(_network_or_endpoint(text), source)
    for text in texts_at(table, "hosts", source, faults):
        if not text.startswith(("unix://", "fd://", "npipe://")):
            yield Api(printable(text.rpartition("@")[2]), source)
    servers = tuple(printable(text) for text in texts_at(table, "dns", source, faults))
    if servers:
        yield ContainerDns(servers, source)
    enabled = table.get(_SWITCH)
    path = text_at(table, "userland-proxy-path", source, faults)
    if isinstance(enabled, bool) or path:
        yield Userland(enabled if isinstance(enabled, bool) else None, path or None, source)
    if not isinstance(enabled, bool | None):
        yield Unreadable(source, f"{_SWITCH} is {kind_of(enabled)}, not true or false")
    features = table.get("features")
    if isinstance(features, dict) and features.get("containerd-snapshotter") is True:
        yield Snapshotter(source)
    yield from faults


def _network_or_endpoint(text: str) -> Endpoint | IPv4Network | IPv6Network:
    if "/" in text and "://" not in text:
        try:
            return ip_network(text, strict=False)
        except ValueError:
            pass  # no network: perhaps a host with a path, which endpoint() reads
    return endpoint(text, "https")


# --- environments


def proxies_of(environment: Mapping[str, str], source: str) -> Iterator[Proxy]:
    """Yield the proxies that an environment names, in capital or small letters."""
    direct = any(environment.get(key) for key in (_NO_PROXY, _NO_PROXY.lower()))
    for key in (*_PROXIES, *map(str.lower, _PROXIES)):
        if environment.get(key):
            yield Proxy(endpoint(environment[key], "http"), key, source, direct)


def process_environment(data: bytes) -> dict[str, str]:
    """Read /proc/PID/environ: the proxy settings of it, and nothing else."""
    found: dict[str, str] = {}
    for item in data.split(b"\0"):
        name, equals, value = item.partition(b"=")
        key = name.decode("ascii", "replace")
        if equals and _wanted(key):
            found.setdefault(key, value.decode("utf-8", "replace"))
    return found


def environment_file(data: bytes, source: str) -> tuple[dict[str, str], tuple[Unreadable, ...]]:
    """Read a file of ``KEY=VALUE`` lines (systemd.exec(5), or sourced by a shell).

    Only the settings that matter are kept.
    """
    found: dict[str, str] = {}
    faults: list[Unreadable] = []
    for line in _lines(data):
        name, equals, value = line.removeprefix("export ").partition("=")
        key = name.strip()
        if not equals or not (_wanted(key) or key == DOCKER_OPTS):
            continue
        words = _words(value)
        if words is None:
            faults.append(Unreadable(source, f"the quotes of {key} do not close"))
        else:
            found[key] = " ".join(words)
    return found, tuple(faults)


def default_docker(data: bytes, source: str) -> Iterator[Fact]:
    """Yield what /etc/default/docker says, where no systemd starts dockerd."""
    environment, faults = environment_file(data, source)
    yield from proxies_of(environment, source)
    words = _words(environment.get(DOCKER_OPTS, ""))
    yield from dockerd_flags(words or (), source)
    yield from faults


def _wanted(key: str) -> bool:
    return key.upper() in (*_PROXIES, _NO_PROXY)


# --- units of systemd


@dataclass(frozen=True, slots=True)
class UnitText:
    """What the files of one unit say together, see systemd.exec(5) and systemd.service(5).

    ``environment`` has the source of each value beside it. ``files`` are the paths of
    EnvironmentFile= in order, possibly patterns. ``command`` is that of ExecStart=.
    """

    environment: dict[str, tuple[str, str]]
    files: tuple[str, ...]
    slice: str
    command: tuple[str, ...]
    faults: tuple[Unreadable, ...]


def unit_text(fragments: Iterable[tuple[str, bytes]]) -> UnitText:
    """Read the files of a unit, each with its source, in the order in which they apply."""
    environment: dict[str, tuple[str, str]] = {}
    files: list[str] = []
    one_slice = ""
    command: tuple[str, ...] = ()
    faults: list[Unreadable] = []
    for source, data in fragments:
        for key, value in _service_section(data):
            match key:
                case "Environment" | "ExecStart":
                    words = _words(value)
                    if words is None:
                        faults.append(Unreadable(source, f"the quotes of {key}= do not close"))
                    elif key == "ExecStart":
                        command = tuple(words)
                    elif not words:
                        environment.clear()
                    else:
                        pairs = (word.partition("=") for word in words)
                        environment |= {name: (said, source) for name, _, said in pairs}
                case "EnvironmentFile" if value:
                    files.append(value.removeprefix("-"))
                case "EnvironmentFile":
                    files.clear()
                case "Slice":
                    one_slice = value
    return UnitText(environment, tuple(files[:MAX_ITEMS]), one_slice, command, tuple(faults))


def _service_section(data: bytes) -> Iterator[tuple[str, str]]:
    section = ""
    for line in _lines(data):
        if line.startswith("["):
            section = line
        elif section == "[Service]":
            key, equals, value = line.partition("=")
            if equals:
                yield key.strip(), value.strip()


def _lines(data: bytes) -> Iterator[str]:
    """Yield lines without blanks around, comments left out, continued ones joined."""
    whole = ""
    for line in data.decode("utf-8", "replace").split("\n"):
        part = line.strip()
        if part.startswith(("#", ";")):
            continue
        if part.endswith("\\"):
            whole += f"{part[:-1]} "
            continue
        if whole or part:
            yield f"{whole}{part}"
        whole = ""
    if whole:
        yield whole


def _words(text: str) -> list[str] | None:
    """Split at blanks, honouring quotes; None when one of them does not close."""
    try:
        return shlex.split(text)
    except ValueError:
        return None
