"""Which rung is used, and why there is none."""

from __future__ import annotations

import pytest

from ramnet.core.config import Config, Dns, DnsMode, HostMode, Scope, ScopeMode, Weak
from ramnet.core.kernel import Decision, Evidence, Feature, Release, parse_release
from ramnet.core.modes import choose
from ramnet.core.policy import ClassMode
from ramnet.core.terms import Rung
from ramnet.errors import UnsupportedKernel

GOOD = Decision(supported=True, reasons=(), missing=())
# Needs nothing of the kernel.
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


# The scope

# What each rung needs, and which is next when it is missing.
NEEDS = {
    ScopeMode.CGROUP: (Feature.SOCKET_CGROUP,),
    ScopeMode.MARK: (Feature.CGROUP_BPF, Feature.MPTCP_OPTION),
    ScopeMode.UID: (Feature.SOCKET_UID, Feature.MPTCP_OPTION),
    ScopeMode.NETNS: (),
}
WSL = parse_release("5.15.167.4-microsoft-standard-WSL2")
PLAIN = parse_release("6.12.0")


def without(*features: Feature) -> dict[Feature, Evidence]:
    return works(*(feature for feature in Feature if feature not in features))


def test_the_best_scope_is_taken_by_itself() -> None:
    modes = choose(Config(), GOOD, EVERYTHING)
    assert modes.scope is ScopeMode.CGROUP
    assert modes.scope_because == ("engines are told by the cgroup that their sockets were made in")


@pytest.mark.parametrize(
    ("lacking", "scope", "passed"),
    [
        ((Feature.SOCKET_CGROUP,), ScopeMode.MARK, ["not 'cgroup': socket-cgroupv2: tried"]),
        (
            (Feature.SOCKET_CGROUP, Feature.CGROUP_BPF),
            ScopeMode.UID,
            ["not 'cgroup': socket-cgroupv2: tried", "not 'mark': cgroup-bpf: tried"],
        ),
        # Without the option neither can tell an engine's MPTCP connections.
        (
            (Feature.SOCKET_CGROUP, Feature.MPTCP_OPTION),
            ScopeMode.NETNS,
            ["not 'mark': mptcp-option: tried", "not 'uid': mptcp-option: tried"],
        ),
        ((Feature.CGROUP_BPF, Feature.SOCKET_UID), ScopeMode.CGROUP, []),
    ],
)
def test_the_next_scope_is_taken_where_a_better_one_does_not_work(
    lacking: tuple[Feature, ...], scope: ScopeMode, passed: list[str]
) -> None:
    modes = choose(Config(), GOOD, without(*lacking))
    assert modes.scope is scope
    for reason in passed:
        assert reason in modes.scope_because
    assert ("not 'cgroup'" in modes.scope_because) is bool(passed)


@pytest.mark.parametrize("mode", NEEDS)
def test_a_scope_that_is_asked_for_is_taken_though_a_better_one_works(mode: ScopeMode) -> None:
    config = Config(scope=Scope(mode=mode))
    for evidence in (EVERYTHING, works(*NEEDS[mode])):
        modes = choose(config, GOOD, evidence)
        assert modes.scope is mode
        assert modes.scope_because.startswith("configured: ")
        assert "not '" not in modes.scope_because


@pytest.mark.parametrize(
    ("mode", "lacking"),
    [(mode, feature) for mode, features in NEEDS.items() for feature in features],
)
def test_a_scope_that_is_asked_for_and_does_not_work_is_refused_with_the_reason(
    mode: ScopeMode, lacking: Feature
) -> None:
    config = Config(scope=Scope(mode=mode))
    with pytest.raises(UnsupportedKernel) as caught:
        choose(config, GOOD, without(lacking))
    assert caught.value.message == (
        f"scope '{mode}' is configured, but this kernel cannot do it: "
        f"not '{mode}': {lacking}: tried"
    )
    assert 'mode = "auto"' in caught.value.hint


def test_a_feature_that_was_not_tried_is_told_as_that() -> None:
    config = Config(scope=Scope(mode=ScopeMode.CGROUP))
    with pytest.raises(UnsupportedKernel, match="socket-cgroupv2 was not tried"):
        choose(config, GOOD, {})


@pytest.mark.parametrize("mode", NEEDS)
@pytest.mark.parametrize("weak", list(Weak))
def test_everybody_is_judged_as_an_engine_only_where_that_is_allowed(
    mode: ScopeMode, weak: Weak
) -> None:
    config = Config(scope=Scope(mode=mode, weak=weak))
    if weak is Weak.REFUSE and mode in (ScopeMode.UID, ScopeMode.NETNS):
        with pytest.raises(UnsupportedKernel, match="cannot tell engines from other") as caught:
            choose(config, GOOD, EVERYTHING)
        assert "weak" in caught.value.hint
    else:
        assert choose(config, GOOD, EVERYTHING).scope is mode


def test_a_ladder_that_ends_at_a_weak_scope_is_refused_where_weak_is() -> None:
    config = Config(scope=Scope(weak=Weak.REFUSE))
    assert choose(config, GOOD, without(Feature.SOCKET_CGROUP)).scope is ScopeMode.MARK
    with pytest.raises(UnsupportedKernel, match="scope 'uid' cannot tell engines"):
        choose(config, GOOD, without(Feature.SOCKET_CGROUP, Feature.CGROUP_BPF))


# The host


@pytest.mark.parametrize(
    ("asked", "release", "mode", "because"),
    [
        (HostMode.AUTO, PLAIN, ClassMode.CATALOG, "known registries"),
        (HostMode.AUTO, None, ClassMode.CATALOG, "known registries"),
        (HostMode.AUTO, WSL, ClassMode.OFF, "WSL2"),
        (HostMode.CATALOG, WSL, ClassMode.CATALOG, "configured"),
        (HostMode.OFF, PLAIN, ClassMode.OFF, "configured"),
    ],
)
def test_how_programs_are_judged_that_are_no_engines(
    asked: HostMode, release: Release | None, mode: ClassMode, because: str
) -> None:
    modes = choose(Config(scope=Scope(host=asked)), GOOD, EVERYTHING, release)
    assert modes.host is mode
    assert because in modes.host_because


def test_a_kernel_that_cannot_is_told_before_any_setting() -> None:
    bad = Decision(supported=False, reasons=("no sets; update", "no log; load it"), missing=())
    with pytest.raises(UnsupportedKernel) as caught:
        choose(Config(), bad, EVERYTHING)
    assert caught.value.message.splitlines()[1:] == ["  no sets; update", "  no log; load it"]
    assert "ramnet check" in caught.value.hint
