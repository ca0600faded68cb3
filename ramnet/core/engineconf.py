"""What the settings and the processes of container engines mean for enforcement.

Pure: from facts to findings. A ``warning`` is something that works otherwise than people expect; of
what is ``not_covered``, ramnet does not judge all the traffic that it would judge of an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from ramnet.core.allow import ANY_PORT, REGISTRY_PORTS, AllowList
from ramnet.core.config import Config, ScopeMode, Weak
from ramnet.core.enginefacts import (
    Api,
    ContainerDns,
    Desktop,
    DockerProxy,
    Endpoint,
    Engine,
    EngineName,
    Fact,
    FoundProxy,
    Insecure,
    Mirror,
    Proxy,
    RootlessSetup,
    Snapshotter,
    Unit,
    Unreadable,
    Userland,
    printable,
)

# A report that nobody reads to its end helps nobody; what is left out is counted.
MAX_FINDINGS: Final = 200
WRAPPER: Final = "ramnet-docker-proxy"
_SLICE: Final = ".slice"
_CONTAINERD_UNIT: Final = "containerd.service"
_LOOPBACK: Final = (IPv4Address("127.0.0.1"), IPv6Address("::1"))
_RAM: Final = "Registry Access Management of Docker Desktop itself is the tool there"


class Kind(StrEnum):
    """What a finding is."""

    WARNING = "warning"
    NOT_COVERED = "not_covered"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found: what it is about, what it means, and what to do about it."""

    kind: Kind
    subject: str
    text: str
    hint: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.text}"


@dataclass(frozen=True, slots=True)
class Context:
    """What facts are judged by.

    ``mode`` is the rung of the scope in use; ``auto``, before one was chosen, is taken for one that
    singles engines out. ``allowed`` is None where no policy could be read. ``resolvers`` are the
    trusted ones, ``mount`` is where cgroup v2 is mounted.
    """

    config: Config
    mode: ScopeMode
    allowed: AllowList | None
    resolvers: frozenset[str]
    mount: str

    @property
    def precise(self) -> bool:
        """Whether engines are told from other programs, and judged on every port."""
        return self.mode is ScopeMode.AUTO or self.mode.precise

    def inside(self, cgroup: str | None) -> bool:
        """Whether a cgroup is one of the configured ones, or in one of them."""
        if cgroup is None:
            return False
        return any(cgroup == one or cgroup.startswith(f"{one}/") for one in self.groups)

    @property
    def groups(self) -> tuple[str, ...]:
        """The cgroups of engines."""
        return self.config.scope.cgroups


def findings(facts: Iterable[Fact], context: Context) -> tuple[Finding, ...]:
    """Say what the facts mean, in their order; at most ``MAX_FINDINGS``."""
    known = tuple(facts)
    found: dict[Finding, None] = {}
    for rule in _RULES:
        found.update(dict.fromkeys(rule(known, context)))
    kept = tuple(found)
    if len(kept) > MAX_FINDINGS:
        text = f"{len(kept) - MAX_FINDINGS} more findings are not shown"
        return (*kept[:MAX_FINDINGS], Finding(Kind.WARNING, "engines", text, "mend some of these"))
    return kept


# --- where connections lead


class _Listed(StrEnum):
    """How a connection of an engine to an address is judged."""

    YES = "the policy lists it"
    NO = "the policy does not list it"
    UNKNOWN = "no policy could be read"
    UNJUDGED = "not judged"


def _listed(where: Endpoint, context: Context) -> _Listed:
    """Tell how the policy and the scope take an address; one without a host is in no policy."""
    allowed = context.allowed
    if not _judged(where.port, context):
        return _Listed.UNJUDGED
    if allowed is None:
        return _Listed.UNKNOWN
    ports: set[int] = set()
    if where.address is not None and where.address.pattern is not None:
        ports |= allowed.ports_of(where.address.pattern.name)
    addresses: tuple[IPv4Address | IPv6Address, ...] = _LOOPBACK if where.loopback else ()
    if where.address is not None and where.address.ip is not None:
        addresses = (where.address.ip,)
    for address in addresses:
        for grant in allowed.grants_for(address):
            ports |= {ANY_PORT} if grant.ports is None else grant.ports
    return _Listed.YES if ports & {where.port, ANY_PORT} else _Listed.NO


def _judged(port: int, context: Context) -> bool:
    if context.precise:
        return True
    if context.config.scope.weak is not Weak.STRICT:
        return False
    return port in (REGISTRY_PORTS if context.allowed is None else context.allowed.ports)


def _why_unjudged(context: Context) -> str:
    if context.config.scope.weak is Weak.STRICT:
        return f"scope {context.mode} judges the ports of registries only"
    return f"scope {context.mode} with weak = {context.config.scope.weak} refuses only registries"


def _proxies(facts: tuple[Fact, ...], context: Context) -> Iterator[Finding]:
    places: dict[Endpoint, list[Proxy]] = {}
    for fact in facts:
        if isinstance(fact, Proxy):
            places.setdefault(fact.endpoint, []).append(fact)
    for where, said in places.items():
        sources = ", ".join(dict.fromkeys(f"{item.key} of {item.source}" for item in said))
        text = f"{sources}: every pull goes to the proxy's address and not to a registry's"
        if any(item.direct for item in said):
            text += " (but for the hosts of NO_PROXY)"
        kind, text, hint = _proxy_verdict(_listed(where, context), text, context)
        if where.loopback:
            text += "; that the proxy is on loopback makes no difference"
        yield Finding(kind, f"proxy {where}", text, hint)


def _proxy_verdict(listed: _Listed, text: str, context: Context) -> tuple[Kind, str, str]:
    behind = "what the engine fetches behind it is not judged"
    remove = "take the setting away, so that the engine reaches registries itself"
    if listed is _Listed.YES:
        text = f"{text}; the policy lists it, and so {behind}"
        return Kind.NOT_COVERED, text, f"{remove}; or let the proxy refuse registries"
    if listed is _Listed.UNJUDGED:
        text = f"{text}; {_why_unjudged(context)}, and so it is reached, and {behind}"
        return Kind.NOT_COVERED, text, f"{remove}; or use scope cgroup or mark"
    if listed is _Listed.NO:
        text = f"{text}; the policy does not list it: it is refused"
        return Kind.WARNING, text, f"{remove}: were the proxy in the policy, {behind}"
    text = f"{text}; it is refused unless the policy lists it, and while it is listed, {behind}"
    return Kind.WARNING, text, remove


def _mirrors(facts: tuple[Fact, ...], context: Context) -> Iterator[Finding]:
    for fact in facts:
        if not isinstance(fact, Mirror):
            continue
        listed = _listed(fact.endpoint, context)
        text = f"{fact.source}: it is asked for images of {fact.registry}"
        needs = "a mirror needs an entry of its own in the policy"
        hint = f'[[registry]] address = "{fact.endpoint}" in the policy, or leave the mirror out'
        kind = Kind.WARNING
        match listed:
            case _Listed.YES:
                text += (
                    f"; the policy lists it: they come from there, {fact.registry} listed or not"
                )
                hint = "nothing, if that is what the policy means"
            case _Listed.NO:
                text += f"; {needs}, and has none: it is refused"
            case _Listed.UNKNOWN:
                text += f"; {needs}, else it is refused"
            case _Listed.UNJUDGED:
                kind = Kind.NOT_COVERED
                text += f"; {_why_unjudged(context)}, and so it is reached"
                hint = "use scope cgroup or mark"
        yield Finding(kind, f"mirror {fact.endpoint}", text, hint)


def _insecure(facts: tuple[Fact, ...], context: Context) -> Iterator[Finding]:
    for fact in facts:
        if not isinstance(fact, Insecure):
            continue
        text = (
            f"{fact.source}: its certificate is not checked, or it has none: that the right one"
            " answers is known by its address alone"
        )
        if isinstance(fact.where, IPv4Network | IPv6Network):
            subject = f"insecure registries in {fact.where}"
        else:
            subject = f"insecure registry {fact.where}"
            if _listed(fact.where, context) is _Listed.NO:
                text += "; the policy does not list it: it is refused"
        hint = "give the registry a certificate that the engine trusts, and take the entry away"
        yield Finding(Kind.WARNING, subject, text, hint)


# --- other settings


def _docker(facts: tuple[Fact, ...], context: Context) -> Iterator[Finding]:
    for fact in facts:
        match fact:
            case Api(address, source):
                text = (
                    f"{source}: whoever can connect there commands the engine, which is as good as"
                    " root on this machine; root is not held"
                )
                hint = 'leave it out of "hosts": the Unix socket and ssh:// serve; or tlsverify'
                yield Finding(Kind.WARNING, f"engine API on {address}", text, hint)
            case ContainerDns(servers, source):
                others = [one for one in servers if one not in context.resolvers]
                if others:
                    listed = ", ".join(others)
                    text = (
                        f"{source}: containers ask {listed} for names, which ramnet does not"
                        " trust: what it answers is neither followed nor refused"
                    )
                    hint = 'leave "dns" out, or list the same servers in ramnet.toml, [dns] servers'
                    yield Finding(Kind.WARNING, "dns of containers", text, hint)
            case Snapshotter(source) if context.precise:
                inside = [
                    one
                    for one in facts
                    if isinstance(one, Engine)
                    and one.name is EngineName.CONTAINERD
                    and context.inside(one.cgroup)
                ]
                if not inside:
                    text = (
                        f"{source}: images are kept by containerd, and no containerd runs in"
                        f" {context.groups[0]}: what it fetches itself is not judged as an engine's"
                    )
                    hint = _placing(_CONTAINERD_UNIT, EngineName.CONTAINERD, context)
                    yield Finding(Kind.WARNING, "containerd-snapshotter", text, hint)
            case Unreadable(source, why):
                hint = "mend it, and run `ramnet check` again"
                text = f"{why}: what it means is not known"
                yield Finding(Kind.WARNING, source, text, hint)


def _userland(facts: tuple[Fact, ...], context: Context) -> Iterator[Finding]:
    """Say what becomes of ports that are published on localhost."""
    said = [fact for fact in facts if isinstance(fact, Userland)]
    switched = [one.enabled for one in said if one.enabled is not None]
    paths = [one.path for one in said if one.path is not None]
    has_docker = any(
        (isinstance(fact, Engine) and fact.name is EngineName.DOCKERD and fact.own)
        or (isinstance(fact, Unit) and fact.name == "docker.service")
        for fact in facts
    )
    if not context.precise or switched[-1:] == [False] or not (has_docker or said):
        return
    running = [
        fact for fact in facts if isinstance(fact, DockerProxy) and context.inside(fact.cgroup)
    ]
    refused = "connections to ports published on localhost are refused"
    found = [fact.path for fact in facts if isinstance(fact, FoundProxy)]
    if not _is_wrapped(paths or found):
        text = f"docker-proxy runs in the cgroup of the engine and is judged as such: {refused}"
        hint = (
            f'set "userland-proxy-path" of daemon.json to /opt/ramnet/current/libexec/{WRAPPER}, or'
            ' "userland-proxy": false'
        )
        yield Finding(Kind.WARNING, "userland-proxy", text, hint)
    elif running:
        pids = ", ".join(str(one.pid) for one in running[:5])
        text = f"docker-proxy (pid {pids}) is in the cgroup of the engine all the same: {refused}"
        hint = "start those containers again; if that does not help, see the log of dockerd"
        yield Finding(Kind.WARNING, "userland-proxy", text, hint)


def _is_wrapped(paths: list[str]) -> bool:
    return bool(paths) and all(path.rpartition("/")[2] == WRAPPER for path in paths)


# --- where engines run


def _engines(facts: tuple[Fact, ...], context: Context) -> Iterator[Finding]:
    running = [fact for fact in facts if isinstance(fact, Engine)]
    for engine in running:
        told = _why_not_covered(engine, context)
        if told:
            text, hint = told
            yield Finding(Kind.NOT_COVERED, str(engine), text, hint)
    names = {engine.name for engine in running if engine.own and not engine.rootless}
    rootless = {engine.uid for engine in running if engine.rootless}
    for fact in facts:
        if isinstance(fact, Unit) and context.precise:
            group = _group_of(fact)
            if fact.engine not in names and not context.inside(group):
                text = (
                    f"{fact.source}: once started, it runs in {printable(group)}, outside"
                    f" {_any_of(context)}: it is then not judged as an engine"
                )
                hint = _placing(fact.name, fact.engine, context)
                yield Finding(Kind.NOT_COVERED, fact.name, text, hint)
        elif isinstance(fact, RootlessSetup) and fact.uid not in rootless:
            text = f"user {fact.uid} has a rootless engine: while it runs, {_ROOTLESS}"
            yield Finding(Kind.NOT_COVERED, fact.path, text, _ROOTLESS_HINT)


_ROOTLESS: Final = (
    "its pulls leave by slirp4netns or pasta as connections of that user: they are judged as class"
    " host or containers, not as an engine's"
)
_ROOTLESS_HINT: Final = "use an engine that runs as root, or let [scope] name its cgroup or user"


def _why_not_covered(engine: Engine, context: Context) -> tuple[str, str] | None:
    """Say why an engine is not judged as one, and what to do; None when it is."""
    covered = context.mode is ScopeMode.NETNS
    if context.precise:
        covered = context.inside(engine.cgroup)
    elif context.mode is ScopeMode.UID:
        covered = engine.uid in context.config.scope.uids
    if covered and engine.own is not False:
        return None
    if engine.rootless:
        return f"it is rootless ({engine.rootless}, uid {engine.uid}): {_ROOTLESS}", _ROOTLESS_HINT
    if engine.own is False:
        text = (
            "it is in a network namespace of its own, as an engine in a container is: what it"
            " fetches is judged as class containers where it is forwarded here, not as an engine's"
        )
        return text, 'to refuse it what engines are refused, set containers = "strict"'
    if context.mode is ScopeMode.UID:
        text = f"it runs as uid {engine.uid}, which [scope] uids does not list"
        return f"{text}: it is not judged as an engine", f"add {engine.uid} to [scope] uids"
    place = "unknown" if engine.cgroup is None else f"/{printable(engine.cgroup)}"
    text = f"its cgroup is {place}, outside {_any_of(context)}: it is not judged as an engine"
    last = (engine.cgroup or "").rpartition("/")[2]
    return text, _placing(last if last.endswith(".service") else "", engine.name, context)


def _any_of(context: Context) -> str:
    return " and ".join(context.groups)


def _placing(unit: str, engine: EngineName, context: Context) -> str:
    """Write how to put an engine into the first of the configured cgroups."""
    group = context.groups[0]
    last = group.rpartition("/")[2]
    if unit and slice_path(last) == group:
        return (
            f"write /etc/systemd/system/{printable(unit)}.d/ramnet.conf with the lines [Service]"
            f" and Slice={last}, then: systemctl daemon-reload && systemctl restart"
            f" {printable(unit)}"
        )
    return (
        f"start it from a shell that has joined: echo $$ >{context.mount}/{group}/cgroup.procs"
        f" && exec {engine}"
    )


def slice_path(name: str) -> str:
    """Return the path of a slice's cgroup: ``a-b.slice`` is in ``a.slice`` (systemd.slice(5))."""
    if not name.endswith(_SLICE) or name == f"-{_SLICE}":
        return ""
    parts = name.removesuffix(_SLICE).split("-")
    return "/".join(f"{'-'.join(parts[:end])}{_SLICE}" for end in range(1, len(parts) + 1))


def _group_of(unit: Unit) -> str:
    path = slice_path(unit.slice or "system.slice")
    return f"{path}/{unit.name}" if path else unit.name


def _desktop(facts: tuple[Fact, ...], _context: Context) -> Iterator[Finding]:
    seen = [fact.evidence for fact in facts if isinstance(fact, Desktop)]
    if seen:
        text = (
            f"its own engine pulls from the Windows or macOS side, where no rule of this machine"
            f" reaches (seen: {', '.join(map(printable, seen))})"
        )
        yield Finding(Kind.NOT_COVERED, "Docker Desktop", text, _RAM)


_Rule = Callable[[tuple[Fact, ...], Context], Iterator[Finding]]
# In the order of a report: what is not covered at all comes first.
_RULES: Final[tuple[_Rule, ...]] = (
    _desktop,
    _engines,
    _proxies,
    _mirrors,
    _insecure,
    _docker,
    _userland,
)
