"""The renderer. What the kernel makes of its text is judged in tests/netns/test_host_nft.py."""

from __future__ import annotations

import pytest

from ramnet.core.ruleset import (
    Chain,
    Counter,
    Family,
    Hook,
    Rule,
    Set,
    Table,
    render_create,
    render_remove,
    render_replace,
    render_update,
)

LEARNED = Set("seen", "ipv4_addr", ("dynamic", "timeout"), 16, "5s", learned=True)
FIXED = Set("ports", "inet_service", elements=("80", "443"))
JUDGE = Chain("judge", (Rule("tcp dport @ports accept", "judged"), Rule("drop")))
OUTPUT = Chain("output", (Rule("jump judge"),), Hook.OUTPUT, -160)
TABLE = Table("t", (Counter("refused"),), (LEARNED, FIXED), (OUTPUT, JUDGE))

CREATED = """\
table inet t {
  counter refused { }
  set seen {
    type ipv4_addr;
    flags dynamic,timeout;
    size 16;
    timeout 5s;
  }
  set ports {
    type inet_service;
    elements = { 80,
      443 }
  }
  chain judge {
    tcp dport @ports accept comment "judged"
    drop
  }
  chain output {
    type filter hook output priority -160; policy accept;
    jump judge
  }
}
"""


def test_a_table_with_everything() -> None:
    """The chain that is jumped to comes first, whatever the order in the table."""
    assert render_create(TABLE) == CREATED


def test_an_empty_table_and_its_flags() -> None:
    assert render_create(Table("t")) == "table inet t {\n}\n"
    flagged = Table("t", flags=("owner", "dormant"))
    assert render_create(flagged) == "table inet t {\n  flags owner,dormant;\n}\n"


def test_a_table_is_replaced_whether_it_was_there_or_not() -> None:
    assert render_replace(TABLE) == f"table inet t\ndelete table inet t\n{CREATED}"
    assert render_remove("t") == "table inet t\ndelete table inet t\n"


# Thousands of networks that stay need not be told again.
SAME = Set("static4_80", "ipv4_addr", ("interval",), elements=("192.0.2.0/24",))


def test_an_update_leaves_what_was_learned_and_the_counters_alone() -> None:
    old = Table(
        "t",
        (Counter("refused"),),
        (
            LEARNED,
            Set("ports", "inet_service", elements=("80",)),
            Set("static4_443", "ipv4_addr", ("interval",), elements=("10.0.0.0/8",)),
            SAME,
        ),
        (JUDGE, OUTPUT),
    )
    new = Table("t", (Counter("refused"),), (LEARNED, FIXED, SAME), (OUTPUT,))
    assert render_update(old, new, [("seen", "192.0.2.1")]) == (
        "flush chain inet t judge\n"
        "flush chain inet t output\n"
        "delete chain inet t judge\n"
        "delete set inet t ports\n"
        "delete set inet t static4_443\n"
        "add element inet t seen { 192.0.2.1 }\n"
        "delete element inet t seen { 192.0.2.1 }\n"
        "table inet t {\n"
        "  set ports {\n"
        "    type inet_service;\n"
        "    elements = { 80,\n"
        "      443 }\n"
        "  }\n"
        "  chain output {\n"
        "    type filter hook output priority -160; policy accept;\n"
        "    jump judge\n"
        "  }\n"
        "}\n"
    )


def test_an_update_makes_the_learned_sets_that_were_not_there_and_takes_away_those_that_go() -> (
    None
):
    came, went = Set("heard", "ipv4_addr", learned=True), Set("deny", "ipv4_addr", learned=True)
    old, new = Table("t", sets=(LEARNED, went)), Table("t", sets=(LEARNED, came))
    assert render_update(old, new, ()) == (
        "delete set inet t deny\ntable inet t {\n  set heard {\n    type ipv4_addr;\n  }\n}\n"
    )


def test_an_update_leaves_the_rules_of_a_learned_chain_alone() -> None:
    """They came by netlink: nft's language cannot say them."""
    hold = Chain("hold", (), learned=True)
    caller = Chain("output", (Rule("jump hold"),), Hook.OUTPUT)
    table = Table("t", chains=(hold, caller))
    update = render_update(table, table, ())
    assert update.startswith("flush chain inet t output\ntable inet t {\n  chain hold {\n  }\n")


def test_a_chain_at_a_device() -> None:
    """A name may hold dots and the like, so it is quoted."""
    chain = Chain("c", (Rule("drop"),), Hook.EGRESS, -160, device="eth0.50")
    table = Table("t", chains=(chain,), family=Family.NETDEV)
    assert render_create(table) == (
        "table netdev t {\n"
        "  chain c {\n"
        '    type filter hook egress device "eth0.50" priority -160; policy accept;\n'
        "    drop\n"
        "  }\n"
        "}\n"
    )


def test_transactions_name_the_family() -> None:
    """Tables of several families may have one name."""
    old = Table("t", sets=(LEARNED, FIXED), chains=(OUTPUT, JUDGE), family=Family.NETDEV)
    new = Table("t", sets=(LEARNED,), family=Family.NETDEV)
    removal = "table netdev t\ndelete table netdev t\n"
    assert render_remove("t", Family.NETDEV) == removal
    assert render_replace(old) == removal + render_create(old)
    assert render_update(old, new, [("seen", "192.0.2.1")]) == (
        "flush chain netdev t output\n"
        "flush chain netdev t judge\n"
        "delete chain netdev t output\n"
        "delete chain netdev t judge\n"
        "delete set netdev t ports\n"
        "add element netdev t seen { 192.0.2.1 }\n"
        "delete element netdev t seen { 192.0.2.1 }\n"
        "table netdev t {\n}\n"
    )


@pytest.mark.parametrize("hook", list(Hook))
def test_every_hook_is_written_as_nft_says_it(hook: Hook) -> None:
    chain = Chain("c", (), hook, 5, "nat")
    text = render_create(Table("t", chains=(chain,)))
    assert f"type nat hook {hook.value} priority 5; policy accept;" in text


def test_the_base_chains_of_a_table() -> None:
    egress = Chain("c", hook=Hook.EGRESS, rules=(), device="eth0")
    assert Table("t", chains=(JUDGE, OUTPUT, egress)).hooks == {("output", None), ("c", "eth0")}


def test_an_update_that_forgets_makes_learned_sets_anew() -> None:
    table = Table("t", sets=(LEARNED, FIXED))
    assert "set seen {" not in render_update(table, table, ())
    update = render_update(table, table, (), forget=True)
    assert "delete set inet t seen\n" in update
    assert "  set seen {\n" in update
