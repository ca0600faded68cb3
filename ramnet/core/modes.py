"""Which rung of each ladder is used: scope (whose traffic) and DNS (how answers are followed).

Pure: from the configuration and the evidence of the probe to a choice, or to the reason why there
is none. Nothing is ever chosen that would claim more than it does.
"""

from __future__ import annotations

from dataclasses import dataclass

from ramnet.core.config import Config, DnsMode, ScopeMode, Weak
from ramnet.core.kernel import Decision
from ramnet.errors import UnsupportedKernel

_STRICT = '[scope] mode = "netns" and weak = "strict" in ramnet.toml'


@dataclass(frozen=True, slots=True)
class Modes:
    """The rungs in use, and why each."""

    scope: ScopeMode
    scope_because: str
    dns: DnsMode
    dns_because: str


def choose(config: Config, decision: Decision) -> Modes:
    """Choose the rungs; raises ``UnsupportedKernel`` when there is none that may be used."""
    if not decision.supported:
        raise UnsupportedKernel(
            "this kernel cannot enforce:\n" + "\n".join(f"  {item}" for item in decision.reasons),
            hint="`ramnet check` shows every feature, its evidence and what to do",
        )
    scope_because = _scope(config)
    dns_because = _dns(config)
    return Modes(ScopeMode.NETNS, scope_because, DnsMode.OBSERVE, dns_because)


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


def _dns(config: Config) -> str:
    if config.dns.mode is DnsMode.HOLD:
        raise UnsupportedKernel(
            "DNS mode 'hold' is not in this version; it has 'observe'",
            hint='set [dns] mode = "auto" in ramnet.toml',
        )
    if config.dns.mode is DnsMode.OBSERVE:
        return "configured"
    return "answers cannot be held in this version; copies are read (NFLOG)"
