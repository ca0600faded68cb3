"""The table for uplinks means what a person wrote by hand; see test_ruleset.py."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from ramnet.core.egress import EgressSets, Local, Uplink, compile_egress
from ramnet.core.policy import ClassMode
from ramnet.core.ruleset import Family, Table, render_create, render_remove, render_replace
from ramnet.core.terms import TABLE, Book, Held
from tests.unit.core.support import SETTINGS, addresses, allowed, policy

GOLDEN = Path(__file__).with_name("golden_egress")

POLICY = policy(
    "corp.example:5000",
    more='networks = ["10.0.0.0/24", "10.0.1.0/24"]\n\n[[destination]]\n'
    'address = "[2001:db8:2::1]:*"\n',
)
LOCAL = Local(
    frozenset({"02:00:00:00:00:02", "02:00:00:00:00:01"}),
    frozenset(addresses("192.0.2.2", "127.0.0.1", "::1", "2001:db8:ffff::2")),
)
HELD = (
    Held(ip_address("198.51.100.60"), 443, 300.0, "dual.example", Book.HEARD),
    Held(ip_address("198.51.100.61"), 0, 60.0, "any.example", Book.HEARD),
    Held(ip_address("198.51.100.66"), 443, 300.0, "evil.example", Book.DENY),
    Held(ip_address("2001:db8::66"), 443, 300.0, "evil.example", Book.DENY),
    Held(ip_address("2001:db8::60"), 443, 300.0, "dual.example", Book.HEARD),
)
SETS = EgressSets(allowed(POLICY), HELD, addresses("203.0.113.53", "2001:db8::53"))
UPLINKS = {
    ClassMode.CATALOG: (Uplink(7, "up.50"), Uplink(1, "lo")),
    ClassMode.STRICT: (Uplink(1, "lo"),),
}


def compiled(mode: ClassMode) -> Table:
    table = compile_egress(UPLINKS[mode], LOCAL, mode, SETS, SETTINGS)
    assert table is not None
    return table


def listing(*transactions: str) -> str:
    """Load these one after the other into a new network namespace; list what is there then."""
    script = 'ip link add up.50 type veth peer name far; for text; do printf %s "$text" | nft -f -'
    script += " || exit; done; nft -s list ruleset"
    done = subprocess.run(
        ["unshare", "--net", "--", "/bin/sh", "-c", script, "listing", *transactions],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def golden(name: str) -> str:
    return (GOLDEN / f"{name}.nft").read_text(encoding="utf-8")


@pytest.mark.parametrize("mode", UPLINKS)
def test_the_compiled_table_lists_like_the_one_written_by_hand(mode: ClassMode) -> None:
    assert listing(render_create(compiled(mode))) == listing(golden(mode))


@pytest.mark.parametrize("mode", UPLINKS)
def test_control_another_table_lists_differently(mode: ClassMode) -> None:
    table = compiled(mode)
    judge = replace(table.chains[0], rules=table.chains[0].rules[1:])
    other = replace(table, chains=(judge, *table.chains[1:]))
    assert listing(render_create(other)) != listing(golden(mode))


def test_every_golden_file_is_used() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(UPLINKS)


@pytest.mark.parametrize("before", UPLINKS)
@pytest.mark.parametrize("after", UPLINKS)
def test_a_table_replaces_only_its_own(before: ClassMode, after: ClassMode) -> None:
    """The main table has the same name, in another family."""
    main = "table inet ramnet { chain c { counter; }; }\n"
    replaced = listing(main, golden(before), render_replace(compiled(after)))
    assert replaced == listing(main, golden(after))
    removed = listing(main, golden(before), render_remove(TABLE, Family.NETDEV))
    assert removed == listing(main)
