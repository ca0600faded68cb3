"""Public suffixes: the installed list, and each kind of its rules."""

from __future__ import annotations

import pytest
from publicsuffixlist import PublicSuffixList

from ramnet.core.names import HostName
from ramnet.core.suffixes import Suffixes, load_suffixes

LIST = """\
// a comment
// ===BEGIN ICANN DOMAINS===
example
co.example
*.kawasaki.example
!city.kawasaki.example
公司.example
home.arpa
// ===END ICANN DOMAINS===

// ===BEGIN PRIVATE DOMAINS===
s3.cloud.example
*.spaces.example
// ===END PRIVATE DOMAINS===
"""


def suffixes() -> Suffixes:
    return Suffixes(LIST.splitlines())


@pytest.mark.parametrize(
    ("name", "registry", "private"),
    [
        ("example", True, False),
        ("co.example", True, False),
        ("a.co.example", False, False),
        ("a.kawasaki.example", True, False),
        ("b.a.kawasaki.example", False, False),
        ("city.kawasaki.example", False, False),
        ("xn--55qx5d.example", True, False),
        ("home.arpa", False, False),
        ("s3.cloud.example", False, True),
        ("cloud.example", False, False),
        ("west.spaces.example", False, True),
        ("bucket.west.spaces.example", False, False),
        ("storage.googleapis.com", False, True),
        ("corp", False, False),
    ],
)
def test_a_name_is_a_suffix_of_a_registry_of_a_hoster_or_of_neither(
    name: str, registry: bool, private: bool
) -> None:
    found = suffixes()
    assert found.is_registry_suffix(HostName(name)) is registry
    assert found.is_private_suffix(HostName(name)) is private


def test_the_shortest_suffix_below_a_name_is_its_example() -> None:
    found = suffixes()
    assert found.below(HostName("cloud.example")) == "s3.cloud.example"
    assert found.below(HostName("spaces.example")) == "*.spaces.example"
    assert found.below(HostName("example")) == "co.example"
    assert found.below(HostName("s3.cloud.example")) == ""


def test_the_installed_list_is_read_once_and_has_what_clouds_say_of_themselves() -> None:
    found = load_suffixes()
    assert load_suffixes() is found
    for name in ("s3.amazonaws.com", "s3.eu-west-1.amazonaws.com", "blob.core.windows.net"):
        assert found.is_private_suffix(HostName(name)), name
    assert found.is_registry_suffix(HostName("co.uk"))
    assert found.below(HostName("amazonaws.com")).endswith(".amazonaws.com")


def test_it_agrees_with_the_package_that_brings_the_list() -> None:
    """What it answers of every rule, and of a name below; but for what is left out on purpose."""
    theirs, ours = PublicSuffixList(accept_unknown=False), load_suffixes()
    file = theirs._publicsuffix  # noqa: SLF001 - there is no other way to get at all rules
    rules = {rule.lstrip("!").replace("*", "x") for rule in file if rule.isascii()}
    assert len(rules) > 5_000
    names = [HostName(name) for rule in sorted(rules) for name in (rule, f"a.{rule}")]
    differ = {
        name
        for name in names
        if theirs.is_public(name) != (ours.is_registry_suffix(name) or ours.is_private_suffix(name))
    }
    assert differ - {"r2.cloudflarestorage.com", "trafficmanager.net"} == {"home.arpa"}
