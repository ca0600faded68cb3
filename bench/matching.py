"""How fast names are parsed and matched, and what a million patterns cost to load.

``run()`` returns the figures; ``python -m bench.matching`` prints them. Every size is measured in a
process of its own, so that memory is that of the patterns alone. The machine may be shared: compare
the ratios, which come from the same process as the figures they divide.

* ``find_*_ns``: one ``Matcher.find``: of an exact name, of a name under a wildcard, of a name that
  nothing covers, and of a name of 127 labels.
* ``load_s``: from pattern strings to a usable ``Matcher``; ``rss_mb``: what it adds to the process.
* ``*_to_dict``: times the cost of a bare ``dict.get``, which knows no wildcards.
* ``scan_to_find`` (10 patterns only): how many ``find`` fit in a scan of all patterns by fnmatch.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from ramnet.core.match import Matcher
from ramnet.core.names import parse_host, parse_pattern

ROOT = Path(__file__).resolve().parent.parent
SIZES = (10, 10**5, 10**6)
# One pattern in ten is a wildcard.
WILDCARD_EVERY = 10
# Names looked up in one pass: more than the nearest caches hold, so that big tables pay for it.
NAMES = 2_000
# The best of several passes: what the code costs when nothing else runs.
PASSES = 7
SCAN_LIMIT = 10


def run() -> dict[str, object]:
    """Measure every size and return ``{"parse_host_ns": ..., "patterns": {"10": {...}, ...}}``."""
    results = {str(size): _in_child(size) for size in SIZES}
    return {
        "parse_host_ns": min(float(figures.pop("parse_host_ns")) for figures in results.values()),
        "patterns": results,
    }


def _in_child(size: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.matching", "--measure", str(size)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _patterns(size: int) -> list[str]:
    return [
        f"*.zone-{number}.registry-{number % 97}.example"
        if number % WILDCARD_EVERY == 0
        else f"host-{number}.registry-{number % 97}.example"
        for number in range(size)
    ]


def _best_ns(call: Callable[[str], object], names: Sequence[str]) -> float:
    """Return the nanoseconds of one call, the loop's own cost included."""
    best = float("inf")
    for _ in range(PASSES):
        start = time.perf_counter_ns()
        for name in names:
            call(name)
        best = min(best, time.perf_counter_ns() - start)
    return best / len(names)


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def _measure(size: int) -> dict[str, float]:
    texts = _patterns(size)
    before = _rss_mb()
    start = time.perf_counter()
    matcher = Matcher((parse_pattern(text), number) for number, text in enumerate(texts))
    load = time.perf_counter() - start
    grown = _rss_mb() - before

    step = max(1, size // NAMES)
    exact = [text for text in texts[1::step] if not text.startswith("*")] or texts[1:2]
    below = [f"a.b{text[1:]}" for text in texts[:: WILDCARD_EVERY * max(1, step // WILDCARD_EVERY)]]
    missing = [f"no-{number}.registry-{number % 97}.example" for number in range(NAMES)]
    deep = [".".join("a" * 127)] * 100
    hits, wilds, misses, deeps = (
        [parse_host(name) for name in _repeat(names)] for names in (exact, below, missing, deep)
    )
    if not all(matcher.find(name) for name in (*hits, *wilds)) or any(map(matcher.find, misses)):
        sys.exit("the matcher is wrong: figures would mean nothing")

    find: Callable[[str], object] = matcher.find  # type: ignore[assignment] # names are checked above
    plain = _best_ns(dict.fromkeys(texts, 0).get, hits)
    figures = {
        "load_s": load,
        "rss_mb": grown,
        "find_exact_ns": _best_ns(find, hits),
        "find_wildcard_ns": _best_ns(find, wilds),
        "find_miss_ns": _best_ns(find, misses),
        "find_127_labels_ns": _best_ns(find, deeps),
        "parse_host_ns": _best_ns(parse_host, hits),
        "dict_get_ns": plain,
    }
    figures["exact_to_dict"] = figures["find_exact_ns"] / plain
    figures["miss_to_dict"] = figures["find_miss_ns"] / plain
    if size <= SCAN_LIMIT:
        scan = _best_ns(lambda name: [text for text in texts if fnmatchcase(name, text)], misses)
        figures["fnmatch_scan_ns"] = scan
        figures["scan_to_find"] = scan / figures["find_miss_ns"]
    return {key: round(value, 3) for key, value in figures.items()}


def _repeat(names: list[str]) -> list[str]:
    return (names * (NAMES // len(names) + 1))[:NAMES]


def main(arguments: list[str]) -> None:
    """Print the figures as JSON; ``--measure N`` is one size, in this process."""
    figures = _measure(int(arguments[1])) if arguments[:1] == ["--measure"] else run()
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
