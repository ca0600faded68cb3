"""Probe the kernel by doing: load a rule in a scratch namespace and read it back."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ramnet.core.kernel import Evidence, Feature
from ramnet.core.ruleset import Chain, Hook, Rule, Set, Table, render_create
from ramnet.errors import HostError
from ramnet.host.elements import NFPROTO_IPV4, Elements
from ramnet.host.nflog import NflogReader
from ramnet.host.nft import Nft
from ramnet.host.scratch import in_scratch_netns

TABLE = "ramnet_probe"
_GROUP = 1


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
    listing = nft.list_table("inet", TABLE)
    for line in listing.splitlines():
        if trial.expect in line:
            return f"loaded and read back: {line.strip()}"
    raise HostError(f"the kernel took the rule, but it does not read back as '{trial.expect}'")


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


def cgroup2_mount() -> str:
    """Return where the cgroup v2 hierarchy is mounted; ``HostError`` when it is not."""
    with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            left, _, right = line.partition(" - ")
            if right.split(" ", 1)[0] == "cgroup2":
                return left.split(" ")[4]
    raise HostError(
        "no cgroup v2 hierarchy is mounted", hint="mount -t cgroup2 none /sys/fs/cgroup"
    )


def _socket_cgroup(nft: Nft) -> str:
    """Match the group that exists nearest to the root: nft resolves a path when it loads it."""
    mount = cgroup2_mount()
    groups = sorted(entry.name for entry in os.scandir(mount) if entry.is_dir())
    # nft reads paths from /sys/fs/cgroup, which on a hybrid machine is not the cgroup2 mount.
    prefix = os.path.relpath(mount, "/sys/fs/cgroup")
    prefix = "" if prefix == "." else f"{prefix}/"
    if not groups:
        raise HostError("the cgroup v2 hierarchy has no group to try with")
    return _try(nft, _rule(f'socket cgroupv2 level 1 "{prefix}{groups[0]}" counter', "cgroupv2"))


def _cgroup_bpf(_nft: Nft) -> str:
    """Load (attach nothing) a two-instruction program of type CGROUP_SOCK."""
    import ctypes  # noqa: PLC0415 - only this probe calls bpf(2) directly

    program = struct.pack("=BBhi", 0xB7, 0, 0, 1) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    instructions = ctypes.create_string_buffer(program, len(program))
    licence = ctypes.create_string_buffer(b"GPL")
    bpf_prog_load, cgroup_sock, sys_bpf = 5, 9, _bpf_number()
    packed = struct.pack(
        "=IIQQ", cgroup_sock, 2, ctypes.addressof(instructions), ctypes.addressof(licence)
    ).ljust(128, b"\0")
    attr = ctypes.create_string_buffer(packed, len(packed))
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(sys_bpf, bpf_prog_load, attr, len(packed))
    if descriptor < 0:
        raise HostError(f"bpf(BPF_PROG_LOAD): {os.strerror(ctypes.get_errno())}")
    os.close(descriptor)
    return "loaded a BPF program of type cgroup/sock"


def _bpf_number() -> int:
    numbers = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
    machine = os.uname().machine
    try:
        return numbers[machine]
    except KeyError:
        raise HostError(f"the number of bpf(2) on {machine} is not known") from None
