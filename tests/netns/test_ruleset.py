"""The compiled ruleset means what a person wrote by hand: the kernel lists both alike.

``golden/*.nft`` are written by hand, in nft's own language, for a policy that the test compiles.
Both are loaded into scratch network namespaces; the kernel's listing is what is compared, whatever
the order of sets and chains. A kernel without nft's queue cannot take the native rung: there other
verdicts stand in for the statements, of which the text is compared. That it loads as it is, the
tests in VMs show.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from ipaddress import ip_address
from pathlib import Path

import pytest

from ramnet.core.allow import allow_list
from ramnet.core.catalog import load_catalog
from ramnet.core.compiler import compile_table
from ramnet.core.config import ScopeMode, Weak
from ramnet.core.policy import ClassMode, parse_policy
from ramnet.core.refusal import refusal_for
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
from ramnet.core.scope import Group, Scope, classes_for
from ramnet.core.terms import (
    OTHERS_QUEUE,
    QUEUE,
    RAW,
    TABLE,
    Book,
    Held,
    Machine,
    Resolver,
    Rung,
    Settings,
    element_of,
)
from tests.netns.groups import own_group
from tests.netns.support import policy

pytestmark = pytest.mark.netns

GOLDEN = Path(__file__).with_name("golden")
LO = 1  # the index of loopback in every network namespace
ELSEWHERE = 7  # the index of an interface that is not there
CGROUPS = Path("/sys/fs/cgroup")  # where nft looks for the paths of cgroups
EVERYBODY = Scope(ScopeMode.NETNS, weak=Weak.STRICT)
DEFAULTS = Settings(0x0100_0000, 65_536, Rung.COMPAT, EVERYBODY)
# What nft says for its queues, and what stands in for it: any two that are nowhere else.
QUEUES = {
    f"queue flags bypass to {QUEUE}": "continue",
    f"queue flags bypass to {OTHERS_QUEUE}": "return",
}
FOREIGN = """\
table inet ramnet2 { chain c { counter; }; }
table ip ramnet { chain c { counter; }; }
"""


@dataclass(frozen=True, slots=True)
class Case:
    """What is compiled: a policy (None for none) on a machine that is like this."""

    policy: str | None
    resolvers: tuple[Resolver, ...] = ()
    held: tuple[Held, ...] = ()
    settings: Settings = DEFAULTS
    bridges: tuple[int, ...] = ()
    blind: bool = False


def enforcing(text: str, containers: str) -> str:
    return f'{text}\n[enforcement]\ncontainers = "{containers}"\n'


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
        Held(ip_address("2001:db8::60"), 443, 360.0, "dual.example", Book.HEARD),
        Held(ip_address("198.51.100.80"), 443, 300.0, "quay.io", Book.DENY),
    ),
    Settings(0x10, 1024, Rung.COMPAT, EVERYBODY),
)
NETWORKS = Case(
    enforcing(
        policy(
            "localhost:*",
            "198.51.100.9:5001",
            "[2001:db8::1]",
            more='\n[[registry]]\naddress = "203.0.113.1:5001"\nnetworks = '
            '["10.0.0.0/24", "10.0.1.0/24", "10.0.0.7", "192.0.2.7", "2001:db8:1::/48"]\n',
            on_deny=None,
        ).replace("203.0.113.1:5001", "corp.example:5001"),
        "off",
    )
)
OBSERVE = replace(NAMES, settings=replace(NAMES.settings, rung=Rung.OBSERVE))
NATIVE = replace(NAMES, settings=replace(NAMES.settings, rung=Rung.NATIVE))

# Engines that are told apart, with destinations: git and telemetry by name, swarm by address.
DESTINATIONS = """
[[registry]]
address = "registry.corp.example:5000"
networks = ["10.0.0.0/24"]
[[destination]]
address = "git.example"
[[destination]]
address = "logs.example"
ports = [443, 4317]
[[destination]]
address = "192.0.2.7:2377"
"""
GROUPS = (
    Group("engines.slice", 1, 1, "engines.slice"),
    Group("engines.slice/podman.service", 2, 2, "engines.slice/podman.service"),
)
BY_GROUP = Scope(ScopeMode.CGROUP, GROUPS, host=ClassMode.CATALOG)
BY_MARK = Scope(ScopeMode.MARK, GROUPS, mark=0x0200_0000, host=ClassMode.CATALOG)
BY_USER = Scope(ScopeMode.UID, uids=(1000, 0), host=ClassMode.CATALOG)


def scoped(
    scope: Scope,
    containers: str,
    rung: Rung = Rung.COMPAT,
    *,
    blind: bool = False,
    more: str = "",
    notice: int | None = None,
) -> Case:
    return Case(
        enforcing(policy(more=DESTINATIONS, on_deny=None), containers) + more,
        (Resolver(ip_address("203.0.113.53"), LO, LO),),
        settings=replace(DEFAULTS, scope=scope, rung=rung, notice=notice),
        bridges=(9, 5),
        blind=blind,
    )


CASES = {
    "locked-down": Case(None),
    "names": NAMES,
    "networks": NETWORKS,
    "observe": OBSERVE,
    "native": NATIVE,
    "cgroup": scoped(BY_GROUP, "catalog"),
    "notice": scoped(BY_GROUP, "catalog", notice=7261),
    "audit": scoped(BY_GROUP, "catalog", more='mode = "audit"\n', notice=7261),
    "host-off": scoped(replace(BY_GROUP, host=ClassMode.OFF), "off"),
    "blind": scoped(replace(BY_GROUP, host=ClassMode.OFF, weak=Weak.STRICT), "off", blind=True),
    "mark": scoped(BY_MARK, "off", Rung.OBSERVE),
    "uid": scoped(BY_USER, "catalog"),
    "containers-strict": scoped(replace(BY_MARK, host=ClassMode.OFF), "strict", Rung.NATIVE),
}
NOTICE_CHAINS = ("lead", "noticed", "astray")
# One daemon goes from one to another of these: its rung of DNS and its scope do not change.
CHANGES = [
    ["locked-down", "names", "networks"],
    ["cgroup", "notice", "audit", "host-off", "blind"],
]


@pytest.fixture(scope="module", autouse=True)
def real_group() -> Iterator[None]:
    """A cgroup with one below it: nft resolves paths when it loads."""
    with own_group() as first:
        (first / "podman.service").mkdir()
        REAL["engines.slice"] = str(first.relative_to(CGROUPS))
        yield


REAL: dict[str, str] = {}


def compiled(case: Case) -> Table:
    text = case.policy
    parsed = None if text is None else parse_policy(text, source="p.toml", ramnet_version="0.1.0")
    allowed = allow_list(parsed, load_catalog(), date(2026, 1, 1))
    classes = classes_for(parsed, case.settings.scope, blind=case.blind)
    machine = Machine(case.bridges, (8,) if case.bridges else ())
    refusal = refusal_for(parsed, case.settings)
    return compile_table(
        allowed, case.resolvers, case.held, case.settings, classes, machine, refusal
    )


def listing(*transactions: str) -> str:
    """Load these one after the other into a new network namespace; list what is there then.

    Without counters and remaining times, and without the time that passed meanwhile. What stands in
    for nft's queue is listed in its place.
    """
    loadable = [_loadable(text) for text in transactions]
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


def _loadable(text: str) -> str:
    for written, real in (*QUEUES.items(), *REAL.items()):
        text = text.replace(written, real)
    return text


def parts(text: str) -> list[str]:
    """The sets, counters and chains of a listing, in no order: it has no meaning."""
    found = []
    for table in f"\n{text}".split("\ntable ")[1:]:
        head, _, body = table.rstrip().removesuffix("\n}").partition(" {\n")
        found += [f"{head}: {' '.join(part.split())}" for part in body.split("\n\n")]
    return sorted(found)


def golden(name: str) -> str:
    return (GOLDEN / f"{name}.nft").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
def test_the_compiled_table_lists_like_the_one_written_by_hand(name: str) -> None:
    table = compiled(CASES[name])
    by_hand = listing(golden(name))
    assert by_hand.count("\tchain ") == len(table.chains)
    assert by_hand.count("\tset ") == len(table.sets)
    assert parts(listing(render_create(table))) == parts(by_hand)


def test_only_the_native_rung_queues_in_the_language_of_nft() -> None:
    for name, case in CASES.items():
        text = render_create(compiled(case))
        for statement in QUEUES:
            assert text.count(statement) == golden(name).count(statement)
        assert ("queue" in text) is (case.settings.rung is Rung.NATIVE)


def test_every_golden_file_is_used() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


LOCKED = compiled(CASES["locked-down"])
JUDGE = next(item for item in LOCKED.chains if item.name == "judge")
MUTANTS = {
    "no refusal": JUDGE.rules[:-1],
    "two rules exchanged": (JUDGE.rules[-1], *JUDGE.rules[:-1]),
    "a rule too many": (Rule("accept"), *JUDGE.rules),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_control_another_ruleset_lists_differently(name: str) -> None:
    chains = [
        replace(item, rules=tuple(MUTANTS[name])) if item.name == "judge" else item
        for item in LOCKED.chains
    ]
    mutant = replace(LOCKED, chains=tuple(chains))
    assert parts(listing(render_create(mutant))) != parts(listing(golden("locked-down")))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("level 2", "level 1"),
        ("goto host", "goto engine"),
        (f"to {QUEUE}", f"to {OTHERS_QUEUE}"),
        ("@heard4", "@allow4"),
        ("engines.slice/podman.service", "engines.slice"),
    ],
)
def test_control_a_word_that_is_wrong_lists_differently(one: str, other: str) -> None:
    (name, *_) = (name for name in CASES if one in golden(name))
    mutant = golden(name).replace(one, other)
    assert parts(listing(golden(name))) != parts(listing(mutant))


def test_the_base_chains_sit_between_conntrack_and_mangle() -> None:
    """A golden file that is as wrong as the compiler would not tell."""
    for name, case in CASES.items():
        based = [chain for chain in compiled(case).chains if chain.hook is not None]
        hooks = {chain.hook: chain for chain in based if chain.name not in NOTICE_CHAINS}
        assert {chain.kind for chain in hooks.values()} == {"filter"}
        assert hooks.pop(Hook.PREROUTING).priority == RAW < -200  # conntrack has not seen it yet
        # Behind the NAT of what comes in (100), which turns the answers of a published server back.
        assert hooks.pop(Hook.INPUT).priority > 100
        assert all(-200 < chain.priority < -150 for chain in hooks.values())
        judged = "type filter hook forward" in golden(name)
        containers = {Hook.FORWARD, Hook.POSTROUTING} if judged else set()
        assert set(hooks) == {Hook.OUTPUT} | containers


# --- transactions


@pytest.mark.parametrize("before", ["", *CASES])
@pytest.mark.parametrize("after", CASES)
def test_a_table_replaces_whatever_was_there(before: str, after: str) -> None:
    first = [golden(before)] if before else []
    wanted = listing(golden(after), FOREIGN)
    replaced = listing(*first, FOREIGN, render_replace(compiled(CASES[after])))
    assert parts(replaced) == parts(wanted)


@pytest.mark.parametrize(
    ("before", "after"),
    [(before, after) for names in CHANGES for before in names for after in names],
)
def test_an_update_differs_from_a_replacement_only_in_what_was_learned(
    before: str, after: str
) -> None:
    """The rules and derived sets become the new ones; leases stay, except those to be dropped."""
    old, new = CASES[before], CASES[after]
    # Sizes cannot change while running: they come from the configuration.
    old = replace(old, settings=replace(old.settings, set_size=65_536))
    new = replace(new, settings=replace(new.settings, set_size=65_536))
    gone = [element_of(item.book, item.address, item.port) for item in old.held[:1]]
    target = compiled(replace(new, held=()))
    stay = {item.name for item in target.sets}
    kept = tuple(
        item for item in old.held[1:] if element_of(item.book, item.address, item.port)[0] in stay
    )
    updated = listing(render_create(compiled(old)), render_update(compiled(old), target, gone))
    whole = listing(render_create(compiled(replace(new, held=kept))))
    assert parts(updated) == parts(whole)


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
        assert parts(left) == parts(listing(render_create(good)))


def test_removal_works_with_and_without_a_table_and_spares_others() -> None:
    removed = listing(FOREIGN, golden("names"), render_remove(TABLE))
    assert parts(removed) == parts(listing(FOREIGN)) != []
    assert listing(FOREIGN, render_remove(TABLE)) == listing(FOREIGN)
