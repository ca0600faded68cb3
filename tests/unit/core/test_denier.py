"""Which addresses of refused registries are refused: not those that may be anybody's."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from ramnet.core.allow import Addr, deny_list
from ramnet.core.config import Limits
from ramnet.core.denier import Denier
from ramnet.core.learner import Lesson
from ramnet.core.terms import Book
from tests.unit.core.support import CATALOG, addresses, allowed, host, policy

QUAY, GHCR = host("quay.io"), host("ghcr.io")
HUB, INDEX = host("registry-1.docker.io"), host("index.docker.io")
ONE, TWO, PORTAL, SIX = "198.51.100.1", "198.51.100.2", "203.0.113.99", "2001:db8::1"


@pytest.fixture
def denier() -> Denier:
    made = Denier(Limits())
    made.permit(deny_list(allowed(policy("r.example")), CATALOG))
    return made


def held(denier: Denier) -> set[Addr]:
    return {lease.ip for lease in denier.leases.snapshot(1.0)}


def dropped(lesson: Lesson | None) -> set[Addr]:
    assert lesson is not None
    return set() if lesson.write is None else {ip for ip, _ in lesson.write.drop}


def test_a_registrys_own_addresses_are_refused(denier: Denier) -> None:
    lesson = denier.teach(QUAY, addresses(ONE, SIX), 60, 0.0)
    assert lesson is not None
    assert lesson.write is not None
    assert lesson.write.book is Book.DENY
    assert held(denier) == set(addresses(ONE, SIX))


def test_what_two_registries_lead_to_is_neithers(denier: Denier) -> None:
    """A captive portal answers for every name."""
    denier.teach(QUAY, addresses(ONE, PORTAL), 60, 0.0)
    assert dropped(denier.teach(GHCR, addresses(PORTAL, TWO), 60, 0.0)) == set(addresses(PORTAL))
    assert held(denier) == set(addresses(ONE, TWO))
    denier.teach(QUAY, addresses(PORTAL), 60, 0.0)
    assert ip_address(PORTAL) not in held(denier)


def test_once_it_is_gone_an_address_is_a_registrys_again(denier: Denier) -> None:
    denier.teach(QUAY, addresses(PORTAL), 60, 0.0)
    denier.teach(GHCR, addresses(PORTAL), 60, 0.0)
    denier.teach(GHCR, addresses(TWO), 60, 0.0)
    denier.teach(QUAY, addresses(PORTAL), 60, 0.0)
    assert held(denier) == set(addresses(PORTAL, TWO))


def test_an_answer_of_one_family_says_nothing_of_the_other(denier: Denier) -> None:
    denier.teach(GHCR, addresses(PORTAL), 60, 0.0)
    denier.teach(GHCR, addresses(SIX), 60, 0.0)
    assert dropped(denier.teach(QUAY, addresses(PORTAL), 60, 0.0)) == set(addresses(PORTAL))


def test_two_names_of_one_registry_may_share_an_address(denier: Denier) -> None:
    denier.teach(HUB, addresses(ONE), 60, 0.0)
    assert dropped(denier.teach(INDEX, addresses(ONE), 60, 0.0)) == set()
    assert held(denier) == set(addresses(ONE))


@pytest.mark.parametrize(
    "private", ["10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd00::1"]
)
def test_a_private_address_is_not_a_public_registrys(denier: Denier, private: str) -> None:
    denier.teach(QUAY, addresses(private, ONE), 60, 0.0)
    assert held(denier) == set(addresses(ONE))


def test_what_a_name_led_to_is_forgotten_with_it(denier: Denier) -> None:
    denier.teach(GHCR, addresses(PORTAL), 60, 0.0)
    denier.permit(deny_list(allowed(policy("ghcr.io")), CATALOG))
    assert denier.teach(GHCR, addresses(PORTAL), 60, 0.0) is None, "it is allowed"
    denier.teach(QUAY, addresses(PORTAL), 60, 0.0)
    assert ip_address(PORTAL) in held(denier)
