from __future__ import annotations

import time

from ramnet.core.match import Matcher
from ramnet.core.names import HostName, parse_host, parse_pattern


def matcher(*patterns: str) -> Matcher[str]:
    return Matcher((parse_pattern(pattern), pattern) for pattern in patterns)


def find(table: Matcher[str], name: str) -> tuple[str, ...]:
    return table.find(parse_host(name))


def test_nothing_matches_an_empty_table() -> None:
    table = matcher()
    assert find(table, "docker.io") == ()
    assert len(table) == 0


def test_exact_names_match_only_themselves() -> None:
    table = matcher("docker.io", "quay.io")
    assert find(table, "docker.io") == ("docker.io",)
    assert find(table, "auth.docker.io") == ()
    assert find(table, "io") == ()
    assert len(table) == 2


def test_a_wildcard_covers_one_or_more_labels_and_never_its_own_name() -> None:
    table = matcher("*.example.com")
    assert find(table, "a.example.com") == ("*.example.com",)
    assert find(table, "a.b.c.example.com") == ("*.example.com",)
    assert find(table, "example.com") == ()
    assert find(table, "badexample.com") == ()
    assert find(table, "example.com.evil.test") == ()


def test_a_wildcard_over_a_top_level_domain() -> None:
    table = matcher("*.com")
    assert find(table, "example.com") == ("*.com",)
    assert find(table, "com") == ()


def test_the_most_specific_pattern_comes_first() -> None:
    table = matcher("*.com", "a.b.example.com", "*.example.com", "*.b.example.com")
    assert find(table, "a.b.example.com") == (
        "a.b.example.com",
        "*.b.example.com",
        "*.example.com",
        "*.com",
    )


def test_the_same_pattern_keeps_all_its_values_in_order() -> None:
    pattern = parse_pattern("*.example.com")
    exact = parse_pattern("a.example.com")
    items = [(pattern, 1), (exact, 2), (pattern, 3), (exact, 4), (pattern, 5)]
    table = Matcher(items)
    assert table.find(HostName("a.example.com")) == (2, 4, 1, 3, 5)
    assert len(table) == 5


def test_a_million_repeats_of_one_pattern_do_not_cost_their_square() -> None:
    pattern = parse_pattern("docker.io")
    start = time.perf_counter()
    table = Matcher((pattern, number) for number in range(10**6))
    assert time.perf_counter() - start < 30  # a growing tuple would take hours
    assert len(table.find(HostName("docker.io"))) == 10**6


def test_only_suffixes_of_as_many_labels_as_some_wildcard_are_probed() -> None:
    probes: list[str] = []

    class Counting(dict[str, tuple[str, ...]]):
        def get(self, key: str, *_: object) -> None:  # type: ignore[override]
            probes.append(key)

    table = matcher("*.com", "*.a.example.com")
    table._suffixes = Counting()  # noqa: SLF001 - counts what the look-up asks for
    assert find(table, ".".join("a" * 126)) == ()
    assert probes == ["a", "a.a.a"]
