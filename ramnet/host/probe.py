"""Probe the kernel by doing: load a rule in a scratch namespace and read it back."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ramnet.core.kernel import Evidence, Feature
from ramnet.core.ruleset import Chain, Counter, Hook, Rule, Set, Table, render_create
from ramnet.core.scope import PROBE_PORT, PROBED, engines_set
from ramnet.errors import HostError
from ramnet.host.bpf import mark_sockets, unmark_sockets
from ramnet.host.cgroups import mount_point, temporary_group
from ramnet.host.elements import NFPROTO_IPV4, Elements
from ramnet.host.live import PROBE_ADDRESS, live_probe
from ramnet.host.nflog import NflogReader
from ramnet.host.nft import Nft
from ramnet.host.scratch import in_scratch_netns

TABLE = "ramnet_probe"
_GROUP = 1
_MARK = 0x0200_0000  # any bit will do: what carries it ends with the probe
_OWNED = "owned"  # counts packets that have a socket

# linux/sockios.h, net/if.h
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1


@dataclass(frozen=True, slots=True)
class _Trial:
    """A table to load, and what its listing must then contain."""

    table: Table
    expect: str


def _rule(text: str, expect: str, *sets: Set, hook: Hook = Hook.OUTPUT) -> _Trial:
    chain = Chain("probe", (Rule(text),), hook, -160)
    return _Trial(Table(TABLE, sets=sets, chains=(chain,)), expect)


def _set(expect: str, item: Set) -> _Trial:
    return _Trial(Table(TABLE, sets=(item,)), expect)


_PAIR = Set("s", "ipv4_addr . inet_service", elements=("192.0.2.1 . 443",))
_TIMED = Set(
    "s", "ipv6_addr . inet_service", ("timeout",), elements=("2001:db8::1 . 443 timeout 60s",)
)
_RANGE = Set("s", "ipv4_addr", ("interval",), elements=("192.0.2.0/24",))
_DYNAMIC = Set("s", "ipv4_addr", ("dynamic", "timeout"), size=16, timeout="5s")
_REDIRECT = Chain("probe", (Rule("tcp dport 1 redirect to :2"),), Hook.OUTPUT, -150, "nat")

_TRIALS: Mapping[Feature, _Trial] = {
    Feature.NFTABLES: _rule("counter", "hook output"),
    Feature.SETS: _rule("ip daddr . tcp dport @s accept", "192.0.2.1 . 443", _PAIR),
    Feature.TIMEOUTS: _set("timeout 1m", _TIMED),
    Feature.INTERVALS: _set("192.0.2.0/24", _RANGE),
    Feature.DYNAMIC: _rule(
        "ip daddr != @s add @s { ip daddr } drop", "add @s { ip daddr }", _DYNAMIC
    ),
    Feature.CONNTRACK: _rule("ct state new counter", "ct state new"),
    Feature.CT_MARK: _rule("ct mark set ct mark or 0x01000000", "ct mark set ct mark"),
    Feature.CT_ORIGINAL: _rule(
        "meta l4proto udp ct direction reply ct original proto-dst 53"
        " ct original ip daddr . iif @s counter",
        "ct original ip daddr . iif @s",
        Set("s", "ipv4_addr . iface_index"),
        hook=Hook.INPUT,
    ),
    Feature.REJECT: _rule("meta l4proto tcp reject with tcp reset", "tcp reset"),
    Feature.LOG: _rule(f"udp dport 53 log group {_GROUP}", f"log group {_GROUP}"),
    Feature.IIF_KIND: _rule('meta iifkind "bridge" counter', "iifkind", hook=Hook.INPUT),
    Feature.LIMIT: _rule(
        "update @s { ip saddr limit rate over 100/second } drop", "limit rate over", _DYNAMIC
    ),
    Feature.QUEUE: _rule(
        "udp sport 53 queue flags bypass to 1", "queue flags bypass", hook=Hook.INPUT
    ),
    Feature.NAT: _Trial(Table(TABLE, chains=(_REDIRECT,)), "redirect to :2"),
    Feature.SOCKET_UID: _rule("meta skuid 0 counter", "skuid"),
    Feature.MPTCP_OPTION: _rule("tcp option 30 exists counter", "tcp option"),
    Feature.OWNER: _Trial(Table(TABLE, flags=("owner",)), "flags owner"),
}


def probe() -> dict[Feature, Evidence]:
    """Try every feature in a scratch network namespace; needs root.

    A feature that cannot be tried is absent, with the reason as its evidence. Raises
    ``HostError`` only when there is no scratch namespace or no libnftables to try with.
    """
    return in_scratch_netns(_probe_here)


def _probe_here() -> dict[Feature, Evidence]:
    special: Mapping[Feature, Callable[[Nft], str]] = {
        Feature.NFLOG: _nflog,
        Feature.COMPAT_QUEUE: _compat_queue,
        Feature.CGROUP_BPF: _cgroup_bpf,
        Feature.SOCKET_CGROUP: _socket_cgroup,
        Feature.EGRESS: _netdev_egress,
    }
    found = {}
    nft = Nft()
    for feature in Feature:
        attempt = special.get(feature)
        try:
            seen = attempt(nft) if attempt is not None else _try(nft, _TRIALS[feature])
            found[feature] = Evidence(feature, present=True, evidence=seen)
        except (HostError, OSError) as err:
            why = err.message if isinstance(err, HostError) else str(err)
            found[feature] = Evidence(feature, present=False, evidence=why)
        finally:
            _clear(nft)
    return found


def _clear(nft: Nft) -> None:
    with contextlib.suppress(HostError):  # nothing to clear where the kernel refused the table
        nft.apply(f"delete table inet {TABLE}\n")


def _try(nft: Nft, trial: _Trial) -> str:
    nft.apply(render_create(trial.table))
    return _read_back(nft, "inet", trial.expect)


def _read_back(nft: Nft, family: str, expect: str) -> str:
    for line in nft.list_table(family, TABLE).splitlines():
        if expect in line:
            return f"loaded and read back: {line.strip()}"
    raise HostError(f"the kernel took the rule, but it does not read back as '{expect}'")


def _nflog(_nft: Nft) -> str:
    NflogReader(_GROUP).close()
    return f"bound NFLOG group {_GROUP}"


def _compat_queue(nft: Nft) -> str:
    """Append the xt target NFQUEUE to a chain of ours, as a rule of nft_compat.

    x_tables has no module prefix for family inet: there the kernel finds a target only if its
    module is loaded already. A rule in family ip, which asks for ``ipt_NFQUEUE``, loads it.
    """
    nft.apply(f"add table ip {TABLE}\nadd chain ip {TABLE} probe\n")
    loader = Elements(TABLE)
    try:
        with contextlib.suppress(HostError):  # what counts is the attempt below
            loader.append_queue_rule("probe", 1, family=NFPROTO_IPV4)
    finally:
        loader.close()
        nft.apply(f"delete table ip {TABLE}\n")
    nft.apply(render_create(Table(TABLE, chains=(Chain("probe", ()),))))
    elements = Elements(TABLE)
    try:
        elements.append_queue_rule("probe", 1)
    finally:
        elements.close()
    return "appended xt target NFQUEUE revision 3 to a chain of family inet"


def _socket_cgroup(nft: Nft) -> str:
    """Match a group by its id, which netlink feeds, and match whatever has a socket at all."""
    rules = (
        f"socket cgroupv2 level 1 @{engines_set(1)} goto engine",
        f"socket transparent 0-1 counter name {_OWNED}",
    )
    with temporary_group(mount_point()) as group:
        nft.apply(_telling_apart(rules, Set(engines_set(1), "cgroupsv2")))
        elements = Elements(TABLE)
        try:
            elements.feed_groups(1, [group.stat().st_ino])
            seen = _live(elements, group)
            if not elements.counters()[_OWNED]:
                raise HostError("'socket transparent 0-1' does not match what has a socket")
        finally:
            elements.close()
    return f"a group at level 1, by its id: {seen}"


def _cgroup_bpf(nft: Nft) -> str:
    """Mark the sockets of a group by BPF, and match the mark."""
    with temporary_group(mount_point()) as group:
        nft.apply(_telling_apart((f"meta mark and {_MARK:#010x} == {_MARK:#010x} goto engine",)))
        elements = Elements(TABLE)
        try:
            mark_sockets(group, _MARK)
            seen = _live(elements, group)
        finally:
            elements.close()
            unmark_sockets(group)
    return f"sockets of a group marked by BPF: {seen}"


def _telling_apart(rules: Iterable[str], *sets: Set) -> str:
    """Render a table that tells engines' packets by these rules, and stops the live probe's."""
    engine = Rule(f"ip daddr {PROBE_ADDRESS} udp dport {PROBE_PORT} counter name {PROBED} drop")
    chains = (
        Chain("engine", (engine,)),
        Chain("probe", tuple(map(Rule, rules)), Hook.OUTPUT, -160),
    )
    return render_create(Table(TABLE, (Counter(PROBED), Counter(_OWNED)), sets, chains))


def _live(elements: Elements, group: Path) -> str:
    _set_lo_up()
    trouble = live_probe(elements, group)
    if trouble:
        raise HostError(trouble)
    return "a datagram from inside was counted and dropped, one from outside was not"


def _set_lo_up() -> None:
    """Bring up lo, which a new namespace has down (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))


def _netdev_egress(nft: Nft) -> str:
    chain = 'type filter hook egress device "lo" priority 0; policy accept;'
    nft.apply(f"table netdev {TABLE} {{\nchain probe {{\n{chain}\n}}\n}}\n")
    try:
        return _read_back(nft, "netdev", "hook egress")
    finally:
        nft.apply(f"delete table netdev {TABLE}\n")
