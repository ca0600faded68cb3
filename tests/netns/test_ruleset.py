"""The compiled ruleset means what a person wrote by hand: the kernel lists both alike.

``golden/*.nft`` are written by hand, in nft's own language, for a policy that the test compiles.
Both are loaded into scratch network namespaces; the kernel's listing is what is compared. A kernel
without nft's queue cannot take the native rung: there another verdict stands in for the statement,
of which the text is compared. That it loads as it is, the tests in VMs show.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from ipaddress import ip_address
from pathlib import Path

import pytest

from ramnet.core.allow import allow_list
from ramnet.core.catalog import load_catalog
from ramnet.core.compiler import (
    QUEUE,
    RAW,
    TABLE,
    Held,
    Resolver,
    Rung,
    Settings,
    compile_table,
    element_of,
)
from ramnet.core.policy import ClassMode, parse_policy
from ramnet.core.ruleset import (
    Chain,
    Hook,
    Rule,
    Table,
    render_create,
    render_remove,
    render_replace,
    render_update,
)
from tests.netns.support import policy

pytestmark = pytest.mark.netns

GOLDEN = Path(__file__).with_name("golden")
LO = 1  # the index of loopback in every network namespace
ELSEWHERE = 7  # the index of an interface that is not there
DEFAULTS = Settings(0x0100_0000, 65_536, Rung.COMPAT)
QUEUE_STATEMENT = f"queue flags bypass to {QUEUE}"
FOREIGN = """\
table inet ramnet2 { chain c { counter; }; }
table ip ramnet { chain c { counter; }; }
"""


@dataclass(frozen=True, slots=True)
class Case:
    policy: str | None
    resolvers: tuple[Resolver, ...] = ()
    held: tuple[Held, ...] = ()
    settings: Settings = DEFAULTS
    containers: ClassMode = ClassMode.CATALOG


REMOTE = Resolver(ip_address("203.0.113.53"), LO, ELSEWHERE)
NAMES = Case(
    policy("dual.example", "registry.corp.example:8443"),
    (
        Resolver(ip_address("127.0.0.53"), LO, LO, frozenset({101, 0})),
        REMOTE,
        # On this machine, but nobody answers there yet: it may be any user of the system.
        Resolver(ip_address("2001:db8::53"), LO, LO, frozenset()),
        REMOTE,
    ),
    (
        Held(ip_address("198.51.100.60"), 443, 360.0, "dual.example"),
        Held(ip_address("2001:db8::60"), 443, 360.0, "dual.example"),
        # nft refuses so long a comment: the element goes without.
        Held(ip_address("203.0.113.40"), 8443, 3601.0, "a." * 70 + "example"),
    ),
    Settings(0x10, 1024, Rung.COMPAT),
)
NETWORKS = Case(
    policy(
        "localhost:*",
        "198.51.100.9:5001",
        "[2001:db8::1]",
        more='\n[[registry]]\naddress = "203.0.113.1:5001"\nnetworks = '
        '["10.0.0.0/24", "10.0.1.0/24", "10.0.0.7", "192.0.2.7", "2001:db8:1::/48"]\n',
    ).replace("203.0.113.1:5001", "corp.example:5001"),
    containers=ClassMode.OFF,
)
OBSERVE = replace(NAMES, settings=replace(NAMES.settings, rung=Rung.OBSERVE))
NATIVE = replace(NAMES, settings=replace(NAMES.settings, rung=Rung.NATIVE))
CASES = {
    "locked-down": Case(None),
    "names": NAMES,
    "networks": NETWORKS,
    "observe": OBSERVE,
    "native": NATIVE,
}
# One daemon goes from one to another of these: its rung does not change.
POLICIES = {name: case for name, case in CASES.items() if case.settings.rung is Rung.COMPAT}


def compiled(case: Case) -> Table:
    text = case.policy
    parsed = None if text is None else parse_policy(text, source="p.toml", ramnet_version="0.1.0")
    allowed = allow_list(parsed, load_catalog(), date(2026, 1, 1))
    return compile_table(allowed, case.resolvers, case.held, case.settings, case.containers)


def listing(*transactions: str) -> str:
    """Load these one after the other into a new network namespace; list what is there then.

    Without counters and remaining times, and without the time that passed meanwhile. In the place
    of nft's queue stands ``continue``.
    """
    loadable = [text.replace(QUEUE_STATEMENT, "continue") for text in transactions]
    script = 'ip link set lo up; for text; do printf %s "$text" | nft -f - || exit; done'
    script += "; nft -s list ruleset"
    done = subprocess.run(
        ["unshare", "--net", "--", "/bin/sh", "-c", script, "listing", *loadable],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def golden(name: str) -> str:
    return (GOLDEN / f"{name}.nft").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
def test_the_compiled_table_lists_like_the_one_written_by_hand(name: str) -> None:
    table = compiled(CASES[name])
    by_hand = listing(golden(name))
    assert by_hand.count("\tchain ") == len(table.chains)
    assert listing(render_create(table)) == by_hand


def test_only_the_native_rung_queues_in_the_language_of_nft() -> None:
    for name, case in CASES.items():
        text = render_create(compiled(case))
        assert text.count("queue") == golden(name).count(QUEUE_STATEMENT)
        assert (QUEUE_STATEMENT in text) is (case.settings.rung is Rung.NATIVE)


def test_every_golden_file_is_used() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


LOCKED = compiled(CASES["locked-down"])
MUTANTS = {
    "no reject": LOCKED.chains[0].rules[:-1],
    "two rules exchanged": (LOCKED.chains[0].rules[-1], *LOCKED.chains[0].rules[:-1]),
    "a rule too many": (Rule("accept"), *LOCKED.chains[0].rules),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_control_another_ruleset_lists_differently(name: str) -> None:
    judge = replace(LOCKED.chains[0], rules=tuple(MUTANTS[name]))
    mutant = replace(LOCKED, chains=(judge, *LOCKED.chains[1:]))
    assert listing(render_create(mutant)) != listing(golden("locked-down"))


def test_the_base_chains_sit_between_conntrack_and_mangle() -> None:
    """A golden file that is as wrong as the compiler would not tell."""
    for case in CASES.values():
        hooks = {chain.hook: chain for chain in compiled(case).chains if chain.hook is not None}
        assert {chain.kind for chain in hooks.values()} == {"filter"}
        assert hooks.pop(Hook.PREROUTING).priority == RAW < -200  # conntrack has not seen it yet
        # Behind the NAT of what comes in (100), which turns the answers of a published server back.
        assert hooks.pop(Hook.INPUT).priority > 100
        assert all(-200 < chain.priority < -150 for chain in hooks.values())
        usual = {Hook.OUTPUT}
        looks_at_containers = case not in {NETWORKS, OBSERVE}
        assert set(hooks) == usual | (
            {Hook.FORWARD, Hook.POSTROUTING} if looks_at_containers else set()
        )


# --- transactions


@pytest.mark.parametrize("before", ["", *CASES])
@pytest.mark.parametrize("after", CASES)
def test_a_table_replaces_whatever_was_there(before: str, after: str) -> None:
    first = [golden(before)] if before else []
    wanted = listing(golden(after), FOREIGN)
    assert _sorted(listing(*first, FOREIGN, render_replace(compiled(CASES[after])))) == _sorted(
        wanted
    )


def _sorted(text: str) -> list[str]:
    """The tables of a listing, whatever order the kernel keeps them in."""
    return sorted(part.strip() for part in f"\n{text}".split("\ntable "))


@pytest.mark.parametrize("before", POLICIES)
@pytest.mark.parametrize("after", POLICIES)
def test_an_update_differs_from_a_replacement_only_in_what_was_learned(
    before: str, after: str
) -> None:
    """The rules and derived sets become the new ones; leases stay, except those to be dropped."""
    old, new = CASES[before], CASES[after]
    # Sizes cannot change while running: they come from the configuration.
    old, new = replace(old, settings=DEFAULTS), replace(new, settings=DEFAULTS)
    gone = [element_of(item.address, item.port) for item in old.held[:1]]
    kept = old.held[1:]
    target = compiled(replace(new, held=()))
    updated = listing(render_create(compiled(old)), render_update(compiled(old), target, gone))
    assert _elements(updated) == _elements(
        listing(render_create(compiled(replace(new, held=kept))))
    )


def _elements(text: str) -> list[str]:
    """The listing by its parts: an update makes its sets in another order than a new table."""
    return sorted(" ".join(part.split()) for part in text.rstrip("}\n").split("\n\n"))


def test_an_update_may_drop_what_has_just_run_out() -> None:
    table = compiled(NAMES)
    drop = [("allow4", "192.0.2.99 . 443"), ("allow6", "2001:db8::99 . 443")]
    same = listing(render_create(table), render_update(table, table, drop))
    assert "192.0.2.99" not in same
    assert "203.0.113.40 . 8443" in same


def test_a_transaction_that_fails_changes_nothing() -> None:
    good = compiled(NAMES)
    bad = replace(LOCKED, chains=(*LOCKED.chains, Chain("late", (Rule("jump nowhere"),))))
    script = 'printf %s "$1" | nft -f - && printf %s "$2" | nft -f - 2>&1; echo; '
    script += "echo ---; nft -s list ruleset"

    def after(text: str) -> Sequence[str]:
        done = subprocess.run(
            ["unshare", "--net", "--", "sh", "-c", script, "sh", render_create(good), text],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split("---\n")

    for text in (render_replace(bad), render_update(good, bad, ())):
        said, left = after(text)
        assert "rror" in said
        assert left == listing(render_create(good))


def test_removal_works_with_and_without_a_table_and_spares_others() -> None:
    assert _sorted(listing(FOREIGN, golden("names"), render_remove(TABLE))) == _sorted(
        listing(FOREIGN)
    )
    assert listing(FOREIGN, render_remove(TABLE)) == listing(FOREIGN)
