"""Which rung is used, and why there is none."""

from __future__ import annotations

import pytest

from ramnet.core.compiler import Rung
from ramnet.core.config import Config, Dns, DnsMode, Scope, ScopeMode, Weak
from ramnet.core.kernel import Decision, Evidence, Feature
from ramnet.core.modes import choose
from ramnet.errors import UnsupportedKernel

GOOD = Decision(supported=True, reasons=(), missing=())
STRICT = Scope(mode=ScopeMode.NETNS, weak=Weak.STRICT)


def works(*features: Feature) -> dict[Feature, Evidence]:
    return {feature: Evidence(feature, feature in features, "tried") for feature in Feature}


EVERYTHING = works(*Feature)


@pytest.mark.parametrize("asked", [DnsMode.AUTO, DnsMode.HOLD, DnsMode.OBSERVE])
@pytest.mark.parametrize("queues", [(), (Feature.QUEUE,), (Feature.COMPAT_QUEUE,), (*Feature,)])
def test_the_best_rung_that_works_and_is_not_forbidden(
    asked: DnsMode, queues: tuple[Feature, ...]
) -> None:
    config = Config(scope=STRICT, dns=Dns(mode=asked))
    if asked is DnsMode.HOLD and not queues:
        with pytest.raises(UnsupportedKernel, match="'hold' is configured, but") as caught:
            choose(config, GOOD, works())
        assert "nft_queue" in caught.value.hint
        return
    modes = choose(config, GOOD, works(*queues))
    rung = Rung.OBSERVE
    if asked is not DnsMode.OBSERVE and queues:
        rung = Rung.NATIVE if Feature.QUEUE in queues else Rung.COMPAT
    assert (modes.scope, modes.rung) == (ScopeMode.NETNS, rung)
    assert modes.dns is (DnsMode.OBSERVE if rung is Rung.OBSERVE else DnsMode.HOLD)
    assert modes.scope_because.startswith("configured: every program")
    assert modes.dns_because


def test_a_queue_that_was_not_tried_is_not_there() -> None:
    assert choose(Config(scope=STRICT), GOOD, {}).rung is Rung.OBSERVE


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
    ],
)
def test_nobody_is_judged_by_surprise(config: Config, says: str) -> None:
    with pytest.raises(UnsupportedKernel) as caught:
        choose(config, GOOD, EVERYTHING)
    assert says in caught.value.message
    assert "ramnet.toml" in caught.value.hint


def test_a_kernel_that_cannot_is_told_before_any_setting() -> None:
    bad = Decision(supported=False, reasons=("no sets; update", "no log; load it"), missing=())
    with pytest.raises(UnsupportedKernel) as caught:
        choose(Config(), bad, EVERYTHING)
    assert caught.value.message.splitlines()[1:] == ["  no sets; update", "  no log; load it"]
    assert "ramnet check" in caught.value.hint
