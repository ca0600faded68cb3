"""Containers on macvlan and ipvlan, on devices and VLANs, with the kernel of a distribution.

The machines where tests run may have no ipvlan and no VLANs. The kernel of bookworm (6.1) also
takes a chain away with its device, and refuses one whose device is not there.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.vm.bare import Bare
from tests.vm.guest.egress import CHILDREN

# With the making of the image, which the first test waits for.
pytestmark = pytest.mark.timeout(1200)

# The egress hook. That ``check`` names it where it is missing is in test_rungs.py.
SINCE = (5, 16)

SECONDS = 400.0  # a sixth of that on an idle machine
CONNECTED, TIMEOUT = ["connected"] * 2, ["timeout"] * 2


@pytest.fixture(scope="module")
def found(bare: Bare) -> dict[str, Any]:
    """What was found: one boot for all that is judged here."""
    return bare.run("egress", seconds=SECONDS)


def test_uplinks_are_found_with_their_vlans(found: dict[str, Any]) -> None:
    assert found["uplinks"] == ["up0", "up0.50", "up0.50.60"]
    # A bond and not what is bound; a member of a VRF as well.
    assert found["devices"]["names"] == [*found["uplinks"], "bond0", "later0"]


@pytest.mark.parametrize("name", CHILDREN)
def test_a_container_of_this_kind_is_judged(found: dict[str, Any], name: str) -> None:
    said = found["children"][name]
    assert said["catalog refusal"] == said["strict refusal"] == ""
    assert said["before"] == {"denied": CONNECTED, "free": CONNECTED}  # the control run
    assert said["catalog"] == {"denied": TIMEOUT, "free": CONNECTED}
    assert said["strict"] == {"denied": TIMEOUT, "free": TIMEOUT}
    assert said["catalog leaks"] == said["strict leaks"] == []


@pytest.mark.parametrize("name", CHILDREN)
def test_the_machine_itself_is_not_touched(found: dict[str, Any], name: str) -> None:
    """Nor is what it sends on VLANs, whose packets pass two or three uplinks."""
    said = found["children"][name]
    assert said["catalog own"] == said["strict own"] == ["connected"] * 4


def test_only_ipvlan_in_l3_is_seen_at_output_and_then_without_a_socket(
    found: dict[str, Any],
) -> None:
    """Which is why all of them are judged at the uplinks."""
    for name, said in found["children"].items():
        seen = said["seen"]
        assert (seen["output"] > 0) is ("l3" in name), name
        assert (seen["with_socket"], seen["forward"]) == (0, 0), name
        assert seen["own_with_socket"] > 0


def test_a_device_that_goes_away_leaves_the_others_judged(found: dict[str, Any]) -> None:
    gone = found["devices"]["gone"]
    assert gone["refusals"] == [""]
    assert set(gone["chains"]) - {"later0"} == {*found["uplinks"], "bond0"}
    assert gone["reached"] == {"denied": TIMEOUT, "free": CONNECTED}


def test_a_table_for_a_missing_device_is_refused_whole_or_not_at_all(
    found: dict[str, Any],
) -> None:
    """Kernels before 6.16 refuse it; then what stood stands."""
    missing = found["devices"]["missing"]
    assert missing["reached"] == {"denied": TIMEOUT, "free": CONNECTED}
    major, minor = map(int, found["kernel"].split(".")[:2])
    assert ("No such file" in missing["refusal"]) is ((major, minor) < (6, 16))
