"""One lab for each file, and after each test a client without ramnet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ramnet.lab.lab import Lab
from tests.netns.support import Ramnet, remove_rules


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def ramnet(lab: Lab) -> Iterator[Ramnet]:
    """Make daemons with ``ramnet(policy)``; they end with the test, and their rules with them."""
    factory = Ramnet(lab, [])
    yield factory
    for daemon in factory.made:
        daemon.abandon()
    remove_rules(lab.client)
