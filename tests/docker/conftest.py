"""One lab with an engine for each file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ramnet.lab.dns import records
from ramnet.lab.lab import Lab
from ramnet.lab.world import EVIL
from tests.docker.support import BUILT
from tests.netns.support import Ramnet, remove_rules

# Beyond the lab's own names; its certificate covers *.example.
RECORDS = records(
    {
        "moving.example": ["198.51.100.100"],
        "rotating.example": ["198.51.100.110"],
        "hosts.example": ["198.51.100.130"],
        "evil6.example": EVIL[1:],
    }
)
PLAIN = ("evil.example:80", "registry.corp.example:80")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    options = {"insecure-registries": list(PLAIN)}
    with Lab(engine=True, engine_options=options, records=RECORDS) as made:
        yield made


@pytest.fixture
def built(lab: Lab) -> Iterator[str]:
    """The image that ``support.build`` makes, for as long as the test."""
    yield BUILT
    lab.engine.forget(BUILT)


@pytest.fixture
def ramnet(lab: Lab) -> Iterator[Ramnet]:
    """Make daemons with ``ramnet(policy)``; they end with the test, and their rules with them."""
    factory = Ramnet(lab, [])
    yield factory
    for daemon in factory.made:
        daemon.abandon()
    remove_rules(lab.client)
