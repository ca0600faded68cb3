from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ramnet.core.match import Matcher
from ramnet.core.names import HostName, HostPattern

# Few letters and short names: patterns and names then meet often.
NAME = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=5).map(
    lambda labels: HostName(".".join(labels))
)
PATTERN = st.builds(HostPattern, NAME, st.booleans())


def covers(pattern: HostPattern, name: HostName) -> bool:
    """Compare label by label from the right: the slow reading of the same rule."""
    want, have = pattern.name.split(".")[::-1], name.split(".")[::-1]
    if pattern.wildcard:
        return len(have) > len(want) and have[: len(want)] == want
    return have == want


@given(st.lists(PATTERN, max_size=12), NAME)
def test_find_agrees_with_a_scan_of_all_patterns(
    patterns: list[HostPattern], name: HostName
) -> None:
    found = Matcher((pattern, number) for number, pattern in enumerate(patterns)).find(name)
    scanned = [number for number, pattern in enumerate(patterns) if covers(pattern, name)]
    # Specific first; the sort is stable, so repeats of a pattern stay in their order.
    scanned.sort(key=lambda n: (patterns[n].wildcard, -patterns[n].name.count(".")))
    assert list(found) == scanned


@given(PATTERN, NAME)
def test_a_pattern_alone_matches_as_in_a_table(pattern: HostPattern, name: HostName) -> None:
    assert pattern.matches(name) == bool(Matcher([(pattern, 0)]).find(name))
