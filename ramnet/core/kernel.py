"""What the running kernel can do, and what follows from it: a pure decision over evidence.

The probe (``host/probe.py``) tries each feature and reads it back; this module says what each one
is for, what its absence costs and what to do, and decides whether ramnet can enforce. The version
alone proves nothing (5.4 does not promise usable sets), but below the documented floor nothing is
tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

# The floor that WSL2 and Docker Desktop document for the feature that ramnet replaces.
FLOOR = (5, 4)
_PARTS = 3  # major, minor, patch; WSL2 writes a fourth
_DIGITS = 6  # more is no version number


@dataclass(frozen=True, slots=True, order=True)
class Release:
    """The leading numbers of a kernel release, and who built it as far as the name tells."""

    major: int
    minor: int
    patch: int
    text: str

    @property
    def wsl(self) -> bool:
        """Whether Microsoft built it for WSL2."""
        return "microsoft" in self.text.lower()

    @property
    def linuxkit(self) -> bool:
        """Whether it is the kernel of a linuxkit VM (Docker Desktop)."""
        return "linuxkit" in self.text.lower()


def parse_release(text: str) -> Release | None:
    """Parse ``uname -r``: the leading numbers only, ``5.15.167.4-microsoft-standard-WSL2``.

    None when it does not begin with ``major.minor``.
    """
    numbers: list[int] = []
    rest = text.strip()
    while len(numbers) < _PARTS:
        digits = len(rest) - len(rest.lstrip("0123456789"))
        if digits == 0 or digits > _DIGITS:
            break
        numbers.append(int(rest[:digits]))
        rest = rest[digits:]
        if not rest.startswith("."):
            break
        rest = rest[1:]
    if len(numbers) < len(FLOOR):
        return None
    major, minor, patch = (*numbers, 0)[:_PARTS]
    return Release(major, minor, patch, text.strip())


class Feature(StrEnum):
    """What ramnet asks of a kernel; the values are the names that ``check`` prints."""

    NFTABLES = "nftables"
    SETS = "sets"
    TIMEOUTS = "set-timeouts"
    INTERVALS = "interval-sets"
    DYNAMIC = "dynamic-sets"
    CONNTRACK = "conntrack"
    CT_MARK = "ct-mark"
    CT_ORIGINAL = "ct-original"
    REJECT = "reject"
    LOG = "log"
    NFLOG = "nflog"
    IIF_KIND = "iif-kind"
    LIMIT = "rate-limit"
    QUEUE = "queue"
    COMPAT_QUEUE = "compat-queue"
    SOCKET_CGROUP = "socket-cgroupv2"
    CGROUP_BPF = "cgroup-bpf"
    SOCKET_UID = "socket-uid"
    MPTCP_OPTION = "mptcp-option"
    EGRESS = "netdev-egress"
    NAT = "nat-redirect"
    OWNER = "table-owner"


@dataclass(frozen=True, slots=True)
class Need:
    """Why a feature is wanted: ``required`` for any enforcement at all, or for a better rung."""

    required: bool
    option: str
    cost: str
    remedy: str


_LOAD = "load the module (`modprobe {}`), or run a kernel that has the option"
_WSL = "on WSL2: `wsl --update` (5.15.57.1 or later has it)"

NEEDS: Mapping[Feature, Need] = {
    Feature.NFTABLES: Need(
        required=True,
        option="CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET",
        cost="no rule can be loaded: nothing is enforced",
        remedy=_LOAD.format("nf_tables") + "; inside a container: run on the host or VM itself",
    ),
    Feature.SETS: Need(
        required=True,
        option="CONFIG_NF_TABLES_SET (always built in since 5.7)",
        cost="allowed addresses cannot be held: nothing is enforced",
        remedy="use kernel 5.7 or later; " + _WSL,
    ),
    Feature.TIMEOUTS: Need(
        required=True,
        option="CONFIG_NF_TABLES_SET",
        cost="learned addresses would never run out: nothing is enforced",
        remedy="use kernel 5.7 or later; " + _WSL,
    ),
    Feature.INTERVALS: Need(
        required=True,
        option="CONFIG_NF_TABLES_SET",
        cost="the networks of a policy cannot be held: nothing is enforced",
        remedy="use kernel 5.7 or later; " + _WSL,
    ),
    Feature.DYNAMIC: Need(
        required=True,
        option="CONFIG_NF_TABLES_SET",
        cost="a first packet that beats its DNS answer would be refused for good",
        remedy="use kernel 5.7 or later; " + _WSL,
    ),
    Feature.CONNTRACK: Need(
        required=True,
        option="CONFIG_NFT_CT, CONFIG_NF_CONNTRACK",
        cost="a SYN split into fragments would pass unseen: nothing is enforced",
        remedy=_LOAD.format("nft_ct") + "; " + _WSL,
    ),
    Feature.CT_MARK: Need(
        required=True,
        option="CONFIG_NFT_CT, CONFIG_NF_CONNTRACK_MARK",
        cost="DNS answers cannot be tied to queries: nothing could be learned safely",
        remedy=_LOAD.format("nft_ct") + "; " + _WSL,
    ),
    Feature.CT_ORIGINAL: Need(
        required=True,
        option="CONFIG_NFT_CT",
        cost="the resolver that was asked cannot be told: nothing could be learned safely",
        remedy=_LOAD.format("nft_ct") + "; " + _WSL,
    ),
    Feature.REJECT: Need(
        required=True,
        option="CONFIG_NFT_REJECT, CONFIG_NFT_REJECT_INET",
        cost="a refused pull would hang until the client gives up",
        remedy=_LOAD.format("nft_reject_inet") + "; " + _WSL,
    ),
    Feature.LOG: Need(
        required=True,
        option="CONFIG_NFT_LOG",
        cost="DNS answers cannot be seen",
        remedy=_LOAD.format("nft_log") + "; " + _WSL,
    ),
    Feature.NFLOG: Need(
        required=True,
        option="CONFIG_NETFILTER_NETLINK_LOG",
        cost="DNS answers cannot be seen",
        remedy=_LOAD.format("nfnetlink_log"),
    ),
    Feature.IIF_KIND: Need(
        required=True,
        option="kernel 5.6 or later",
        cost="a container could keep DNS answers from being believed",
        remedy="use kernel 5.6 or later; " + _WSL,
    ),
    Feature.LIMIT: Need(
        required=True,
        option="CONFIG_NFT_LIMIT",
        cost="a flood of DNS answers to one program would keep those of others waiting",
        remedy=_LOAD.format("nft_limit") + "; " + _WSL,
    ),
    Feature.QUEUE: Need(
        required=False,
        option="CONFIG_NFT_QUEUE",
        cost="DNS answers cannot be held natively until the set is written",
        remedy=_LOAD.format("nft_queue"),
    ),
    Feature.COMPAT_QUEUE: Need(
        required=False,
        option="CONFIG_NFT_COMPAT, CONFIG_NETFILTER_XT_TARGET_NFQUEUE",
        cost="DNS answers cannot be held through the compatibility layer either",
        remedy=_LOAD.format("nft_compat xt_NFQUEUE"),
    ),
    Feature.SOCKET_CGROUP: Need(
        required=False,
        option="CONFIG_NFT_SOCKET (cgroupv2: 5.13 or later)",
        cost="engines cannot be told from other programs by their cgroup in a rule",
        remedy=_LOAD.format("nft_socket") + "; a writable cgroup v2 hierarchy must be mounted",
    ),
    Feature.CGROUP_BPF: Need(
        required=False,
        option="CONFIG_CGROUP_BPF",
        cost="engines cannot be told from other programs by a socket mark",
        remedy="run a kernel that has the option; a writable cgroup v2 hierarchy must be mounted",
    ),
    Feature.SOCKET_UID: Need(
        required=False,
        option="CONFIG_NF_TABLES",
        cost="engines cannot be told from the programs of ordinary users either",
        remedy=_LOAD.format("nf_tables"),
    ),
    Feature.MPTCP_OPTION: Need(
        required=False,
        option="nftables 1.0.2 or later",
        cost="under a mark or a user id, an engine's MPTCP connections cannot be told",
        remedy="install libnftables 1.0.2 or later",
    ),
    Feature.EGRESS: Need(
        required=False,
        option="CONFIG_NETFILTER_EGRESS (5.16 or later), nftables 1.0.1 or later",
        cost="containers with an address of their own on the network (macvlan) are not restricted",
        remedy="use kernel 5.16 or later",
    ),
    Feature.NAT: Need(
        required=False,
        option="CONFIG_NFT_NAT, CONFIG_NFT_REDIR",
        cost="a refused connection cannot be shown a message, it is only refused",
        remedy=_LOAD.format("nft_redir"),
    ),
    Feature.OWNER: Need(
        required=False,
        option="kernel 5.12 or later",
        cost="rules that another program flushes leave a gap until they are put back",
        remedy="use kernel 5.12 or later",
    ),
}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one probe saw: whether the feature works, and what showed it."""

    feature: Feature
    present: bool
    evidence: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether this kernel can enforce; ``reasons`` says why not, each with its remedy."""

    supported: bool
    reasons: tuple[str, ...]
    missing: tuple[Feature, ...]


def decide(release: Release | None, evidence: Mapping[Feature, Evidence]) -> Decision:
    """Decide from the release and the evidence; a feature that was not probed counts as missing.

    ``release`` None (unparsable) does not forbid: the features speak for themselves.
    """
    reasons: list[str] = []
    if release is not None and (release.major, release.minor) < FLOOR:
        floor = ".".join(map(str, FLOOR))
        reasons.append(
            f"kernel {release.text} is older than {floor}"
            + ("; update it with `wsl --update`" if release.wsl else "; update the kernel")
        )
    missing = []
    for feature, need in NEEDS.items():
        found = evidence.get(feature)
        if found is not None and found.present:
            continue
        missing.append(feature)
        # Without nftables all else is missing as well. `systemctl status` shows ten lines: it is to
        # show that one.
        if need.required and (feature is Feature.NFTABLES or Feature.NFTABLES not in missing):
            reasons.append(f"{feature}: {need.cost} ({need.option}); {need.remedy}")
    return Decision(not reasons, tuple(reasons), tuple(missing))
