"""Which rung of each ladder is used: scope (whose traffic) and DNS (how answers are followed).

Pure: from the configuration and the evidence of the probe to a choice, or to the reason why there
is none. Nothing is ever chosen that would claim more than it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ramnet.core.config import Config, DnsMode, HostMode, ScopeMode, Weak
from ramnet.core.kernel import Decision, Evidence, Feature, Release
from ramnet.core.policy import ClassMode
from ramnet.core.scope import Group, Scope
from ramnet.core.terms import Rung, Settings
from ramnet.errors import UnsupportedKernel

_WEAK = 'where every program may be judged, set [scope] weak = "strict" or "catalog"'

# What each rung of the scope needs of the kernel, from the best down.
_LADDER = (
    (ScopeMode.CGROUP, (Feature.SOCKET_CGROUP,)),
    (ScopeMode.MARK, (Feature.CGROUP_BPF, Feature.MPTCP_OPTION)),
    (ScopeMode.UID, (Feature.SOCKET_UID, Feature.MPTCP_OPTION)),
    (ScopeMode.NETNS, ()),
)
_MEANS = {
    ScopeMode.CGROUP: "engines are told by the cgroup that their sockets were made in",
    ScopeMode.MARK: "engines are told by a mark that a cgroup-BPF program sets on their sockets;"
    " every MPTCP connection of this machine counts as theirs",
    ScopeMode.UID: "engines are told by their user: every program of that user, and every MPTCP"
    " connection, counts as one",
    ScopeMode.NETNS: "every program of this network namespace is judged as an engine",
}


@dataclass(frozen=True, slots=True)
class Modes:
    """The rungs in use, and why each."""

    scope: ScopeMode
    scope_because: str
    dns: DnsMode
    dns_because: str
    rung: Rung
    host: ClassMode
    host_because: str


def choose(
    config: Config,
    decision: Decision,
    evidence: Mapping[Feature, Evidence],
    release: Release | None = None,
) -> Modes:
    """Choose the rungs; raises ``UnsupportedKernel`` when there is none that may be used."""
    if not decision.supported:
        raise UnsupportedKernel(
            "this kernel cannot enforce:\n" + "\n".join(f"  {item}" for item in decision.reasons),
            hint="`ramnet check` shows every feature, its evidence and what to do",
        )
    scope, scope_because = _scope(config, evidence)
    rung, dns_because = _dns(config, evidence)
    mode = DnsMode.OBSERVE if rung is Rung.OBSERVE else DnsMode.HOLD
    host, host_because = _host(config, release)
    return Modes(scope, scope_because, mode, dns_because, rung, host, host_because)


def settings_for(
    config: Config,
    modes: Modes,
    groups: tuple[Group, ...],
    evidence: Mapping[Feature, Evidence],
    notice: int | None = None,
    families: tuple[int, ...] = (4, 6),
) -> Settings:
    """Return what the rules need to know of the configuration, the rungs and engines' cgroups.

    ``notice`` is the port of the responder, where there is one, for clients of these ``families``.
    """
    scope = Scope(
        mode=modes.scope,
        groups=groups,
        mark=config.mark.engine,
        uids=config.scope.uids,
        weak=config.scope.weak,
        host=modes.host,
    )
    return Settings(
        ct_dns=config.mark.ct_dns,
        set_size=config.limits.leases_total,
        rung=modes.rung,
        scope=scope,
        ct_host=config.mark.ct_host,
        egress=_works(evidence, Feature.EGRESS),
        notice=notice if families else None,
        notice_families=families,
        mark_notice=config.mark.notice,
    )


def _scope(config: Config, evidence: Mapping[Feature, Evidence]) -> tuple[ScopeMode, str]:
    """Take the best rung that works, or the one that is asked for; each was tried for real."""
    asked = config.scope.mode
    reasons: list[str] = []
    for mode, features in _LADDER:
        if asked not in (ScopeMode.AUTO, mode):
            continue
        lacking = [item for item in features if not _works(evidence, item)]
        if not lacking:
            _weak_is_allowed(config, mode)
            passed = f" ({'; '.join(reasons)})" if reasons else ""
            configured = "" if asked is ScopeMode.AUTO else "configured: "
            return mode, f"{configured}{_MEANS[mode]}{passed}"
        reasons += [f"not '{mode}': {_why(evidence, item)}" for item in lacking]
    raise UnsupportedKernel(
        f"scope '{asked}' is configured, but this kernel cannot do it: {'; '.join(reasons)}",
        hint='set [scope] mode = "auto"; `ramnet check` shows what is missing and what to do',
    )


def _weak_is_allowed(config: Config, mode: ScopeMode) -> None:
    if config.scope.weak is Weak.REFUSE and not mode.precise:
        raise UnsupportedKernel(
            f"scope '{mode}' cannot tell engines from other programs, and weak = \"refuse\" does"
            " not allow to enforce so",
            hint=_WEAK,
        )


def _works(evidence: Mapping[Feature, Evidence], feature: Feature) -> bool:
    found = evidence.get(feature)
    return found is not None and found.present


def _why(evidence: Mapping[Feature, Evidence], feature: Feature) -> str:
    found = evidence.get(feature)
    return f"{feature}: {found.evidence}" if found is not None else f"{feature} was not tried"


def _host(config: Config, release: Release | None) -> tuple[ClassMode, str]:
    """Decide how programs are judged that are no engines."""
    asked = config.scope.host
    if asked is HostMode.AUTO:
        if release is not None and release.wsl:
            return ClassMode.OFF, "on WSL2 all distros share this network namespace"
        return ClassMode.CATALOG, "refused are known registries that are not allowed, and only they"
    mode = ClassMode.CATALOG if asked is HostMode.CATALOG else ClassMode.OFF
    return mode, "configured"


def _dns(config: Config, evidence: Mapping[Feature, Evidence]) -> tuple[Rung, str]:
    """Hold natively, else through nft_compat, else copy; the evidence is the reason."""
    if config.dns.mode is DnsMode.OBSERVE:
        return Rung.OBSERVE, "configured: answers are copied, and pass at once"
    if _works(evidence, Feature.QUEUE):
        return Rung.NATIVE, "answers are held by a queue rule of nftables"
    if _works(evidence, Feature.COMPAT_QUEUE):
        return Rung.COMPAT, "answers are held by xt NFQUEUE: the kernel has no queue of nftables"
    why = "the kernel has neither CONFIG_NFT_QUEUE nor xt NFQUEUE through CONFIG_NFT_COMPAT"
    if config.dns.mode is DnsMode.HOLD:
        raise UnsupportedKernel(
            f"DNS mode 'hold' is configured, but {why}",
            hint='load nft_queue, or nft_compat and xt_NFQUEUE; or set [dns] mode = "auto"',
        )
    return Rung.OBSERVE, f"answers are copied, and pass at once: {why}"
