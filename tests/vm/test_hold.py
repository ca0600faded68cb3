"""Mode ``hold`` on a kernel of a distribution, with its modules or without some of them.

The machines where tests run may have no queue of nftables (``NFT_QUEUE=n``): here is where the
native rung is tried. A kernel before 6.12 also cannot change the timeout of an element.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.vm.bare import Bare
from tests.vm.guest.main import FEW_NAMES, MANY_NAMES
from tests.vm.kernels import chosen

# With the making of the image, which the first test waits for.
pytestmark = pytest.mark.timeout(1200)

LOWER_SECONDS = 300.0  # a tenth of that on an idle machine
NATIVE_SECONDS = 1000.0
# Five minutes on a machine that does something else as well: as many as there may be only where all
# kernels are tried, which takes its time anyway.
NAMES = MANY_NAMES if chosen().thorough else 2_000
STOP_COSTS_SECONDS = 2.0
MAY_BE_LATE = 0.01  # of the answers, on a machine that does a lot besides; else none is


@pytest.fixture(scope="module")
def native(bare: Bare) -> dict[str, Any]:
    """What was found on a kernel that has everything: one boot for all that is judged here."""
    return bare.run("native", str(NAMES), seconds=NATIVE_SECONDS)


def test_native_rung_is_chosen_on_evidence(native: dict[str, Any]) -> None:
    assert native["check"]["modes"] == {"scope": "netns", "dns": "hold", "rung": "native"}
    present, evidence = native["check"]["features"]["queue"]
    assert present
    assert "queue flags bypass" in evidence
    assert native["dns"] == {"mode": "hold", "rung": "native"}


def test_no_syn_is_refused_or_dropped(native: dict[str, Any]) -> None:
    """Every name was fresh, and every answer was held until the kernel had its address.

    That the counters do move is seen where they have to: at an address that is not listed.
    """
    assert native["counted"]["refused"] == 1
    race = native["race"]
    wanted = ("asked", "answered", "held")
    assert {key: race[key] for key in wanted} == dict.fromkeys(wanted, NAMES), race
    # No answer is held for ever. Where the machine was that slow, one may have gone before its
    # address was there: then, and only then, its SYN may have been refused.
    late = race["released_late"]
    assert late <= NAMES * MAY_BE_LATE, race
    assert min(race["connected"], race["reached"]) >= NAMES - late, race
    assert race["refused"] <= late, race
    none = ("dropped", "write_failures", "overruns")
    assert {key: race[key] for key in none} == dict.fromkeys(none, 0), race
    assert race["leases"] >= NAMES


def test_what_is_not_listed_is_refused(native: dict[str, Any]) -> None:
    """The same connection passes before the daemon has been started."""
    assert native["without"] == "connected"
    places = (native, native["killed"], native["stopped"])
    assert [place["denied"] for place in places] == ["refused"] * 3


def test_killed_daemon_leaves_dns_and_rules(native: dict[str, Any]) -> None:
    killed = native["killed"]
    assert killed["learned"] == "connected"
    assert killed["answer_seconds"] < STOP_COSTS_SECONDS


def test_restarted_daemon_reads_its_leases_back_and_goes_on(native: dict[str, Any]) -> None:
    again = native["again"]
    assert again["leases"] >= NAMES
    assert again["fresh"] == ["connected"] * FEW_NAMES


def test_stopped_daemon_is_not_in_the_way(native: dict[str, Any]) -> None:
    stopped = native["stopped"]
    assert stopped["answers"] > 1
    assert stopped["answer_seconds"] < STOP_COSTS_SECONDS
    assert stopped["learned"] == "connected"
    assert stopped["fresh"] == ["connected"] * FEW_NAMES  # and it goes on


def test_lease_is_extended_before_it_runs_out(native: dict[str, Any]) -> None:
    """The address that nobody asked for again has run out meanwhile, and opens again."""
    extended = native["extended"]
    assert extended["first"] == ["connected", "connected"]
    assert extended["seconds_left"] > 0, "the machine was too slow to tell anything"
    assert extended["later"] == ["refused", "connected"]
    assert extended["asked_again"] == "connected"


@pytest.mark.thorough
def test_without_nft_queue_the_compat_rung_is_chosen(bare: Bare) -> None:
    found = bare.run("compat", seconds=LOWER_SECONDS, blacklist=("nft_queue",))
    features = found["check"]["features"]
    assert not features["queue"][0], features
    assert features["compat-queue"][0], features["compat-queue"]
    assert found["dns"] == {"mode": "hold", "rung": "compat"}
    assert found["denied"] == "refused"
    race = found["race"]
    wanted = ("connected", "reached", "held")
    assert {key: race[key] for key in wanted} == dict.fromkeys(wanted, FEW_NAMES), race
    assert (race["refused"], race["dropped"]) == (0, 0)


@pytest.mark.thorough
def test_without_any_queue_answers_are_observed(bare: Bare) -> None:
    """A SYN may be first here: one to an unknown address is dropped, and judged when it returns."""
    modules = ("nft_queue", "xt_NFQUEUE")
    found = bare.run("observe", seconds=LOWER_SECONDS, blacklist=modules)
    features = found["check"]["features"]
    assert not features["queue"][0], features
    assert not features["compat-queue"][0], features
    assert found["dns"] == {"mode": "observe", "rung": "observe"}
    assert found["denied"] == "refused"
    assert (found["counted"]["dropped"], found["counted"]["refused"]) == (1, 1)
    race = found["race"]
    assert (race["connected"], race["refused"], race["held"]) == (FEW_NAMES, 0, 0), race
