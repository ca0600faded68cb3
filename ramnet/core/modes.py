"""Which rung of each ladder is used: scope (whose traffic) and DNS (how answers are followed).

Pure: from the configuration and the evidence of the probe to a choice, or to the reason why there
is none. Nothing is ever chosen that would claim more than it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ramnet.core.compiler import Rung
from ramnet.core.config import Config, DnsMode, ScopeMode, Weak
from ramnet.core.kernel import Decision, Evidence, Feature
from ramnet.errors import UnsupportedKernel

_STRICT = '[scope] mode = "netns" and weak = "strict" in ramnet.toml'


@dataclass(frozen=True, slots=True)
class Modes:
    """The rungs in use, and why each."""

    scope: ScopeMode
    scope_because: str
    dns: DnsMode
    dns_because: str
    rung: Rung


def choose(config: Config, decision: Decision, evidence: Mapping[Feature, Evidence]) -> Modes:
    """Choose the rungs; raises ``UnsupportedKernel`` when there is none that may be used."""
    if not decision.supported:
        raise UnsupportedKernel(
            "this kernel cannot enforce:\n" + "\n".join(f"  {item}" for item in decision.reasons),
            hint="`ramnet check` shows every feature, its evidence and what to do",
        )
    scope_because = _scope(config)
    rung, dns_because = _dns(config, evidence)
    mode = DnsMode.OBSERVE if rung is Rung.OBSERVE else DnsMode.HOLD
    return Modes(ScopeMode.NETNS, scope_because, mode, dns_because, rung)


def _scope(config: Config) -> str:
    scope = config.scope
    if scope.mode is ScopeMode.AUTO:
        raise UnsupportedKernel(
            "no scope can be chosen by itself: this version has no rung that tells engines from"
            " other programs (cgroup, mark, uid), and does not judge everybody by surprise",
            hint=f"where every program of the machine may be judged, set {_STRICT}",
        )
    if scope.mode is not ScopeMode.NETNS:
        raise UnsupportedKernel(
            f"scope '{scope.mode}' is not in this version; it has 'netns'",
            hint=f"where every program of the machine may be judged, set {_STRICT}",
        )
    if scope.weak is not Weak.STRICT:
        raise UnsupportedKernel(
            f"scope 'netns' cannot tell engines apart, and weak = '{scope.weak}' does not allow to"
            " judge everybody as strictly as an engine; this version has no milder way",
            hint=f"where every program of the machine may be judged, set {_STRICT}",
        )
    return "configured: every program of this network namespace is judged as an engine"


def _dns(config: Config, evidence: Mapping[Feature, Evidence]) -> tuple[Rung, str]:
    """Hold natively, else through nft_compat, else copy; the evidence is the reason."""
    if config.dns.mode is DnsMode.OBSERVE:
        return Rung.OBSERVE, "configured: answers are copied, and pass at once"
    works = {feature for feature, found in evidence.items() if found.present}
    if Feature.QUEUE in works:
        return Rung.NATIVE, "answers are held by a queue rule of nftables"
    if Feature.COMPAT_QUEUE in works:
        return Rung.COMPAT, "answers are held by xt NFQUEUE: the kernel has no queue of nftables"
    why = "the kernel has neither CONFIG_NFT_QUEUE nor xt NFQUEUE through CONFIG_NFT_COMPAT"
    if config.dns.mode is DnsMode.HOLD:
        raise UnsupportedKernel(
            f"DNS mode 'hold' is configured, but {why}",
            hint='load nft_queue, or nft_compat and xt_NFQUEUE; or set [dns] mode = "auto"',
        )
    return Rung.OBSERVE, f"answers are copied, and pass at once: {why}"
