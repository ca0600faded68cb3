"""How each class is judged: what the policy wants, as far as the scope can tell who is who."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ramnet.core.config import ScopeMode, Weak
from ramnet.core.policy import ClassMode
from ramnet.core.scope import Classes, Group, Scope, classes_for, engines_set
from tests.unit.core.support import CGROUP, GROUPS, MARK, NETNS, UID, policy

STRICT, CATALOG, OFF = ClassMode.STRICT, ClassMode.CATALOG, ClassMode.OFF
PRECISE = [CGROUP, MARK]
WEAK = [UID, NETNS]


def enforcement(**keys: str) -> str:
    lines = "".join(f'{key} = "{value}"\n' for key, value in keys.items())
    return f"[enforcement]\n{lines}"


def classes(scope: Scope, **keys: str) -> Classes:
    return classes_for(policy("r.example", more=enforcement(**keys)), scope)


@pytest.mark.parametrize("scope", PRECISE)
@pytest.mark.parametrize("weak", [Weak.CATALOG, Weak.STRICT, Weak.REFUSE])
@pytest.mark.parametrize("wanted", list(ClassMode))
def test_where_engines_are_told_apart_the_policy_is_done(
    scope: Scope, weak: Weak, wanted: ClassMode
) -> None:
    found = classes(replace(scope, weak=weak), engine=wanted)
    assert found == Classes(wanted, CATALOG, CATALOG)


@pytest.mark.parametrize("scope", WEAK)
@pytest.mark.parametrize(
    ("weak", "wanted", "engine"),
    [
        (Weak.CATALOG, STRICT, CATALOG),
        (Weak.CATALOG, CATALOG, CATALOG),
        (Weak.CATALOG, OFF, OFF),
        (Weak.STRICT, STRICT, STRICT),
        (Weak.STRICT, CATALOG, CATALOG),
        (Weak.STRICT, OFF, OFF),
    ],
)
def test_a_weak_scope_is_strict_with_everybody_only_when_told_to(
    scope: Scope, weak: Weak, wanted: ClassMode, engine: ClassMode
) -> None:
    found = classes(replace(scope, weak=weak), engine=wanted)
    assert found.engine is engine
    # Under netns programs are not told from engines at all: they are judged alike.
    assert found.host is (engine if scope.mode is ScopeMode.NETNS else CATALOG)


@pytest.mark.parametrize("scope", [*PRECISE, *WEAK])
@pytest.mark.parametrize("wanted", list(ClassMode))
def test_containers_are_as_the_policy_says_whatever_the_scope(
    scope: Scope, wanted: ClassMode
) -> None:
    assert classes(scope, containers=wanted).containers is wanted


@pytest.mark.parametrize("scope", [CGROUP, MARK, UID])
def test_the_host_is_as_the_machine_says_and_not_the_policy(scope: Scope) -> None:
    assert classes(scope).host is CATALOG
    assert classes(replace(scope, host=OFF)).host is OFF


@pytest.mark.parametrize(
    ("scope", "weak", "engine"),
    [
        *((scope, weak, STRICT) for scope in PRECISE for weak in Weak),
        *((scope, Weak.STRICT, STRICT) for scope in WEAK),
        # The catalogue is of no use without a policy that says which of it is allowed.
        *((scope, Weak.CATALOG, OFF) for scope in WEAK),
    ],
)
def test_without_a_policy_engines_are_locked_and_nobody_else_is_touched(
    scope: Scope, weak: Weak, engine: ClassMode
) -> None:
    assert classes_for(None, replace(scope, weak=weak)) == Classes(
        engine, OFF, engine if scope.mode is ScopeMode.NETNS else OFF
    )


@pytest.mark.parametrize("scope", [CGROUP, MARK, UID])
@pytest.mark.parametrize(
    ("weak", "wanted", "host"),
    [
        (Weak.STRICT, STRICT, STRICT),
        (Weak.REFUSE, STRICT, STRICT),
        # Who is left alone stays so, unless strictness was asked for: of engines, and of everybody.
        (Weak.CATALOG, STRICT, OFF),
        (Weak.STRICT, CATALOG, OFF),
        (Weak.CATALOG, OFF, OFF),
        (Weak.STRICT, OFF, OFF),
    ],
)
def test_where_the_probe_fails_the_host_is_judged_as_its_engines_may_be(
    scope: Scope, weak: Weak, wanted: ClassMode, host: ClassMode
) -> None:
    """Any program may be an engine then; but none is judged more strictly than an engine is."""
    given = replace(scope, weak=weak, host=OFF)
    found = classes_for(policy("r.example", more=enforcement(engine=wanted)), given, blind=True)
    assert found.host is host
    assert found.containers is CATALOG


@pytest.mark.parametrize("scope", PRECISE)
def test_where_the_probe_fails_without_a_policy(scope: Scope) -> None:
    for weak, host in ((Weak.CATALOG, CATALOG), (Weak.STRICT, STRICT), (Weak.REFUSE, STRICT)):
        found = classes_for(None, replace(scope, weak=weak), blind=True)
        assert found == Classes(STRICT, OFF, host)


def test_whether_the_catalogue_is_needed() -> None:
    assert not Classes(STRICT, STRICT, OFF).catalog
    for one in (Classes(CATALOG, OFF, OFF), Classes(OFF, CATALOG, OFF), Classes(OFF, OFF, CATALOG)):
        assert one.catalog


@pytest.mark.parametrize(
    ("mode", "precise"),
    [
        (ScopeMode.CGROUP, True),
        (ScopeMode.MARK, True),
        (ScopeMode.UID, False),
        (ScopeMode.NETNS, False),
    ],
)
def test_which_scopes_mean_engines_and_nobody_else(mode: ScopeMode, precise: bool) -> None:
    assert Scope(mode).precise is precise


def test_the_levels_at_which_groups_are_looked_for() -> None:
    deep = Group("a/b/c", 3, 9, "a/b/c")
    assert Scope(ScopeMode.CGROUP, (deep, *GROUPS, deep)).levels == (1, 2, 3)
    assert Scope(ScopeMode.UID).levels == ()
    assert engines_set(2) == "engines2"
