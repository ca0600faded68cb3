"""The probe: every feature tried, with evidence, and nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ramnet.core.kernel import NEEDS, Feature, decide, parse_release
from ramnet.errors import HostError
from ramnet.host import probe as module
from ramnet.host.cgroups import PROBE_PREFIX, mount_point
from ramnet.host.elements import Elements
from ramnet.host.nft import Nft
from ramnet.host.probe import probe
from ramnet.host.scratch import in_scratch_netns
from tests.netns.groups import remove


def test_every_feature_has_evidence_and_this_kernel_can_enforce() -> None:
    """The tests of this folder enforce here, so every required feature must be found."""
    found = probe()
    assert found.keys() == set(Feature)
    for feature, item in found.items():
        assert item.feature is feature
        assert item.evidence.strip()
        assert "\n" not in item.evidence
        if item.present and feature in module._TRIALS:  # noqa: SLF001
            assert item.evidence.startswith("loaded and read back: ")
    decision = decide(parse_release(os.uname().release), found)
    assert decision.supported, decision.reasons
    assert {f for f in Feature if NEEDS[f].required and not found[f].present} == set()


def test_the_evidence_is_what_the_kernel_says() -> None:
    found = probe()
    assert "reject with tcp reset" in found[Feature.REJECT].evidence
    assert "192.0.2.0/24" in found[Feature.INTERVALS].evidence
    assert "timeout 1m" in found[Feature.TIMEOUTS].evidence
    assert "log group 1" in found[Feature.LOG].evidence
    assert "ct original ip daddr . iif @s" in found[Feature.CT_ORIGINAL].evidence
    assert "meta skuid 0" in found[Feature.SOCKET_UID].evidence
    assert "tcp option mptcp exists" in found[Feature.MPTCP_OPTION].evidence
    assert 'hook egress device "lo"' in found[Feature.EGRESS].evidence


def test_nothing_is_left_in_our_own_namespace() -> None:
    nft = Nft()
    before = nft.tables()
    namespace = Path("/proc/self/ns/net").readlink()
    descriptors = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names
    probe()
    assert nft.tables() == before
    assert Path("/proc/self/ns/net").readlink() == namespace
    assert len(set(os.listdir("/proc/self/fd")) - descriptors) == 0  # noqa: PTH208


def test_each_trial_is_cleared_before_the_next() -> None:
    def work() -> tuple[tuple[str, str], ...]:
        module._probe_here()  # noqa: SLF001
        return Nft().tables()

    assert in_scratch_netns(work) == ()


def test_a_feature_that_the_kernel_refuses_is_absent_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_nft: Nft, text: str) -> None:
        if "reject" in text:
            raise HostError("nft: Error: Could not process rule: No such file or directory")
        real(_nft, text)

    real = Nft.apply
    monkeypatch.setattr(Nft, "apply", refuse)
    found = probe()
    assert not found[Feature.REJECT].present
    assert "No such file" in found[Feature.REJECT].evidence
    assert found[Feature.SETS].present
    assert not decide(None, found).supported


def test_what_does_not_read_back_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that takes a rule and makes something else of it has not got the feature."""
    monkeypatch.setattr(Nft, "list_table", lambda *_arguments: "table inet ramnet_probe {\n}\n")
    found = probe()
    assert not found[Feature.CT_MARK].present
    assert "does not read back" in found[Feature.CT_MARK].evidence
    assert found[Feature.NFLOG].present


# Features that a packet has to show

LIVE = (Feature.SOCKET_CGROUP, Feature.CGROUP_BPF)


def leftovers() -> list[Path]:
    return list(mount_point().glob(f"{PROBE_PREFIX}{os.getpid()}-*"))


def test_the_evidence_of_a_live_feature_is_what_packets_showed() -> None:
    found = probe()
    for feature in LIVE:
        assert found[feature].present, found[feature].evidence
        assert found[feature].evidence.endswith(
            ": a datagram from inside was counted and dropped, one from outside was not"
        )
    assert leftovers() == []


def test_a_rule_that_loads_and_matches_nothing_is_no_feature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kernel that takes the rule and counts levels in another way, or marks nothing."""
    monkeypatch.setattr(Elements, "feed_groups", lambda *_arguments: None)
    monkeypatch.setattr(module, "mark_sockets", lambda *_arguments: True)
    found = probe()
    for feature in LIVE:
        assert not found[feature].present
        assert "do not take a socket made in cgroup" in found[feature].evidence
    assert leftovers() == []


def test_a_rule_that_matches_everybody_is_no_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module._telling_apart  # noqa: SLF001
    monkeypatch.setattr(
        module, "_telling_apart", lambda _rules, *sets: real(("goto engine",), *sets)
    )
    found = probe()
    for feature in LIVE:
        assert not found[feature].present
        assert "the rules take a socket of ramnet itself" in found[feature].evidence


def test_sockets_that_cannot_be_seen_are_no_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module._telling_apart  # noqa: SLF001
    monkeypatch.setattr(
        module, "_telling_apart", lambda rules, *sets: real(tuple(rules)[:1], *sets)
    )
    found = probe()
    assert not found[Feature.SOCKET_CGROUP].present
    assert "'socket transparent 0-1' does not match" in found[Feature.SOCKET_CGROUP].evidence
    assert found[Feature.CGROUP_BPF].present


def test_a_hierarchy_that_cannot_be_used_is_an_absent_feature(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Never an end to the whole probe: nothing mounted, or mounted where nothing can be made."""

    def nothing() -> Path:
        raise HostError("no cgroup v2 hierarchy is mounted")

    cases = {
        "no cgroup v2 hierarchy is mounted": nothing,
        "cannot be made: No such file or directory": lambda: tmp_path / "nowhere",
        "cannot be made: Not a directory": lambda: Path("/etc/hostname"),
    }
    for words, mount in cases.items():
        monkeypatch.setattr(module, "mount_point", mount)
        found = probe()
        for feature in LIVE:
            assert not found[feature].present
            assert words in found[feature].evidence
        assert found[Feature.SETS].present


def test_what_a_killed_probe_has_left_goes_with_the_next() -> None:
    left = mount_point() / f"{PROBE_PREFIX}{os.getpid()}-left" / "inner"
    left.mkdir(parents=True)
    try:
        assert probe()[Feature.SOCKET_CGROUP].present
        assert leftovers() == []
    finally:
        if left.exists():
            remove(left.parent)


def test_an_unknown_machine_cannot_try_bpf(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = os.uname_result(("Linux", "here", "6.1", "#1", "pdp11"))
    monkeypatch.setattr(os, "uname", lambda: machine)
    found = probe()
    assert not found[Feature.CGROUP_BPF].present
    assert "pdp11" in found[Feature.CGROUP_BPF].evidence
