"""Which rung is used, and why there is none."""

from __future__ import annotations

import pytest

from ramnet.core.config import Config, Dns, DnsMode, Scope, ScopeMode, Weak
from ramnet.core.kernel import Decision
from ramnet.core.modes import choose
from ramnet.errors import UnsupportedKernel

GOOD = Decision(supported=True, reasons=(), missing=())
STRICT = Scope(mode=ScopeMode.NETNS, weak=Weak.STRICT)


@pytest.mark.parametrize(
    ("mode", "because"), [(DnsMode.AUTO, "cannot be held"), (DnsMode.OBSERVE, "configured")]
)
def test_netns_and_observe_when_they_are_asked_for(mode: DnsMode, because: str) -> None:
    modes = choose(Config(scope=STRICT, dns=Dns(mode=mode)), GOOD)
    assert (modes.scope, modes.dns) == (ScopeMode.NETNS, DnsMode.OBSERVE)
    assert modes.scope_because.startswith("configured: every program")
    assert because in modes.dns_because


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (Config(), "no scope can be chosen by itself"),
        (Config(scope=Scope(weak=Weak.STRICT)), "no scope can be chosen by itself"),
        *(
            (
                Config(scope=Scope(mode=mode, weak=Weak.STRICT)),
                f"scope '{mode}' is not in this version",
            )
            for mode in (ScopeMode.CGROUP, ScopeMode.MARK, ScopeMode.UID)
        ),
        (Config(scope=Scope(mode=ScopeMode.NETNS)), "weak = 'catalog' does not allow"),
        (
            Config(scope=Scope(mode=ScopeMode.NETNS, weak=Weak.REFUSE)),
            "weak = 'refuse' does not allow",
        ),
        (Config(scope=STRICT, dns=Dns(mode=DnsMode.HOLD)), "'hold' is not in this version"),
    ],
)
def test_nobody_is_judged_by_surprise(config: Config, says: str) -> None:
    with pytest.raises(UnsupportedKernel) as caught:
        choose(config, GOOD)
    assert says in caught.value.message
    assert "ramnet.toml" in caught.value.hint


def test_a_kernel_that_cannot_is_told_before_any_setting() -> None:
    bad = Decision(supported=False, reasons=("no sets; update", "no log; load it"), missing=())
    with pytest.raises(UnsupportedKernel) as caught:
        choose(Config(), bad)
    assert caught.value.message.splitlines()[1:] == ["  no sets; update", "  no log; load it"]
    assert "ramnet check" in caught.value.hint
