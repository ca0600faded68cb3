"""Why something is allowed or refused: the chain from the policy entry to the lease."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from ramnet.core.allow import ANY_PORT, HTTPS, LOCALHOST, AllowList, Grant
from ramnet.core.leases import Lease, LeaseTable
from ramnet.core.names import Address, HostName, parse_address
from ramnet.core.reference import DOCKER_HUB, DOCKER_HUB_WIRE, parse_reference
from ramnet.errors import NameFault

Addr = IPv4Address | IPv6Address
# What ``localhost`` leads to, without DNS.
LOOPBACK: tuple[Addr, ...] = (IPv4Address("127.0.0.1"), IPv6Address("::1"))


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked about: a name or an address, and the port that a client would dial."""

    text: str
    host: HostName | None
    address: Addr | None
    port: int

    @property
    def shown(self) -> str:
        """The host or address, with a port that is not HTTPS."""
        if self.host is not None:
            return self.host if self.port == HTTPS else f"{self.host}:{self.port}"
        plain = f"[{self.address}]" if isinstance(self.address, IPv6Address) else str(self.address)
        return str(self.address) if self.port == HTTPS else f"{plain}:{self.port}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict on a target, and why.

    ``registry`` is the policy's address that allows it, empty when none does; ``leases`` are what
    the kernel holds for it.
    """

    target: Target
    reason: str
    registry: str = ""
    leases: tuple[Lease, ...] = ()

    @property
    def allowed(self) -> bool:
        """Whether the policy allows it."""
        return bool(self.registry)


def parse_target(text: str) -> Target:
    """Read an image reference, a host or an IP address, each with an optional port.

    What has a slash is an image; so is a plain word (``nginx``, ``nginx:1.27``), as Docker reads
    it. A word with a dot or a number after its colon (``quay.io``, ``registry:5000``), and
    ``localhost``, is a host; ``docker.io`` is the host that Docker dials for it. Raises
    ``NameFault`` or ``ReferenceFault``.
    """
    word = text.strip()
    if "/" in word:
        return _of_address(word, parse_reference(word).wire)
    host, _, port = word.partition(":")
    bare_ipv6 = word.count(":") > 1 and "@" not in word
    if word.startswith("[") or "." in host or host == LOCALHOST or port.isdigit() or bare_ipv6:
        target = _of_address(word, parse_address(word))
        hub = target.host == DOCKER_HUB and target.port == HTTPS
        return replace(target, host=HostName(DOCKER_HUB_WIRE)) if hub else target
    return _of_address(word, parse_reference(word).wire)


def _of_address(text: str, address: Address) -> Target:
    if address.any_port or (address.pattern is not None and address.pattern.wildcard):
        raise NameFault(
            f"'{text}' is a pattern, not one host",
            hint="ask about one host that it covers, such as registry.example.com",
        )
    name = address.pattern.name if address.pattern is not None else None
    return Target(text, name, address.ip, address.port or HTTPS)


def explain(
    target: Target, allowed: AllowList, leases: LeaseTable | None, now: float
) -> Explanation:
    """Explain what the policy says of ``target`` when an engine dials it.

    Whether it is refused depends on how a class is judged (``core.explainclass``). ``leases`` is
    None where no daemon can be asked.
    """
    if target.host is not None:
        return _explain_host(target, target.host, allowed, leases, now)
    return _explain_address(target, allowed, leases, now)


def _explain_host(
    target: Target, host: HostName, allowed: AllowList, leases: LeaseTable | None, now: float
) -> Explanation:
    held = leases.by_name(host, now) if leases is not None else ()
    held = tuple(lease for lease in held if lease.port in (target.port, ANY_PORT))
    grants = list(allowed.names.find(host))
    if host == LOCALHOST:
        grants += allowed.grants_for(LOOPBACK[0])
    for grant in grants:
        if covers(grant, target.port):
            return Explanation(target, grant.via, grant.registry, held)
    if grants:
        return _other_port(target, grants)
    return Explanation(target, "no registry of the policy covers it")


def _explain_address(
    target: Target, allowed: AllowList, leases: LeaseTable | None, now: float
) -> Explanation:
    address = target.address
    assert address is not None  # noqa: S101 - a target is a host or an address
    grants = list(allowed.grants_for(address))
    for grant in grants:
        if covers(grant, target.port):
            return Explanation(target, grant.via, grant.registry)
    held = leases.find(address, now) if leases is not None else ()
    for lease in held:
        if lease.port in (target.port, ANY_PORT) and lease.names:
            name = lease.names[0]
            grants_of = (g for g in allowed.names.find(name) if covers(g, target.port))
            registry = next((grant.registry for grant in grants_of), "")
            return Explanation(target, f"DNS: {name} led to it", registry, (lease,))
    if grants:
        return _other_port(target, grants)
    if held:
        ports = ", ".join(str(lease.port) for lease in held)
        return Explanation(target, f"the address is allowed on port {ports} only")
    if leases is None:
        return Explanation(target, "no network of the policy holds it (DNS was not asked)")
    why = "no network of the policy holds it and no allowed name led to it"
    return Explanation(target, why)


def why_refused(
    allowed: AllowList, organization: str | None, name: HostName | None, port: int
) -> str:
    """Say in one sentence why a connection was refused; ``organization`` None: by no policy."""
    if organization is None:
        return "there is no valid policy: nothing is allowed"
    if name is None:
        return f"no name that the policy of {organization} allows led to it"
    if _covers_name(allowed, name, port):
        return "the name is allowed, but no trusted resolver said that it leads to this address"
    if list(allowed.names.find(name)):
        return f"the policy of {organization} allows the name, but not on port {port}"
    return f"the policy of {organization} does not list it"


def _covers_name(allowed: AllowList, name: HostName, port: int) -> bool:
    return any(covers(grant, port) for grant in allowed.names.find(name))


def covers(grant: Grant, port: int) -> bool:
    """Whether a grant is for this port."""
    return grant.ports is None or port in grant.ports


def _other_port(target: Target, grants: list[Grant]) -> Explanation:
    ports = sorted({port for grant in grants for port in grant.ports or ()})
    listed = ", ".join(map(str, ports))
    return Explanation(target, f"the policy allows it on port {listed} only")
