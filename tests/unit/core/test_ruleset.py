"""The renderer. What the kernel makes of its text is judged in tests/netns/test_host_nft.py."""

from __future__ import annotations

import pytest

from ramnet.core.ruleset import (
    Chain,
    Counter,
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


def test_an_update_leaves_what_was_learned_and_the_counters_alone() -> None:
    old = Table(
        "t",
        (Counter("refused"),),
        (LEARNED, FIXED, Set("static4_443", "ipv4_addr", ("interval",), elements=("10.0.0.0/8",))),
        (JUDGE, OUTPUT),
    )
    new = Table("t", (Counter("refused"),), (LEARNED, FIXED), (OUTPUT,))
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


def test_an_update_leaves_the_rules_of_a_learned_chain_alone() -> None:
    """They came by netlink: nft's language cannot say them."""
    hold = Chain("hold", (), learned=True)
    caller = Chain("output", (Rule("jump hold"),), Hook.OUTPUT)
    table = Table("t", chains=(hold, caller))
    update = render_update(table, table, ())
    assert update.startswith("flush chain inet t output\ntable inet t {\n  chain hold {\n  }\n")


@pytest.mark.parametrize("hook", list(Hook))
def test_every_hook_is_written_as_nft_says_it(hook: Hook) -> None:
    chain = Chain("c", (), hook, 5, "nat")
    text = render_create(Table("t", chains=(chain,)))
    assert f"type nat hook {hook.value} priority 5; policy accept;" in text
