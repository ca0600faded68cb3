"""``explain`` says what the table does, for any text and any target."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from ramnet.core.allow import ANY_PORT
from ramnet.core.config import Limits
from ramnet.core.explain import explain, parse_target
from ramnet.core.learner import Learner
from ramnet.errors import RamnetError
from tests.unit.core.support import allowed, host, policy

HOSTS = ["a.example", "b.example", "x.a.example", "localhost", "quay.io"]
ADDRESSES = ["198.51.100.1", "198.51.100.2", "10.1.2.3", "127.0.0.1", "2001:db8::1", "::1"]
PORTS = [443, 5000, 8443, 9000]
ENTRIES = st.lists(
    st.sampled_from(
        [
            "a.example",
            "a.example:5000",
            "*.example:8443",
            "b.example:*",
            "localhost:5000",
            "10.1.2.3:5000",
            "quay.io",
        ]
    ),
    max_size=4,
    unique=True,
)
LEARNED = st.lists(
    st.tuples(st.sampled_from(HOSTS), st.sampled_from(ADDRESSES), st.integers(0, 900)), max_size=5
)


def read_back(text: str) -> None:
    """Read a target, and what it is shown as; only errors of ours may come of it."""
    with suppress(RamnetError):
        target = parse_target(text)
        assert (target.host is None) != (target.address is None)
        assert 1 <= target.port <= 65_535
        if target.host is not None and "." not in target.host:
            return  # alone, such a name is an image
        again = parse_target(target.shown)
        assert (again.host, again.address, again.port) == (target.host, target.address, target.port)


@given(st.text(max_size=60))
def test_any_text_is_a_target_or_an_error_of_ours(text: str) -> None:
    read_back(text)


@given(st.text("abz.:[]*/@0123456789%-_", max_size=25))
def test_text_that_looks_like_a_target(text: str) -> None:
    read_back(text)


@given(ENTRIES, LEARNED, st.integers(0, 1000))
def test_the_verdict_is_the_tables(
    entries: list[str], learned: list[tuple[str, str, int]], now: int
) -> None:
    found = allowed(policy(*entries))
    learner = Learner(Limits())
    learner.permit(found)
    for name, led_to, at in sorted(learned, key=lambda item: item[2]):
        if at <= now:
            learner.teach(host(name), [ip_address(led_to)], 60, at)
    for port in PORTS:
        for text, address in zip(ADDRESSES, map(ip_address, ADDRESSES), strict=True):
            in_network = any(
                grant.ports is None or port in grant.ports for grant in found.grants_for(address)
            )
            ports = {lease.port for lease in learner.leases.find(address, now)}
            leased = bool(ports & {port, ANY_PORT})
            target = parse_target(f"[{text}]:{port}" if ":" in text else f"{text}:{port}")
            said = explain(target, found, learner.leases, now)
            assert said.allowed is (in_network or leased), (text, port, said)
            assert said.reason
        for name in HOSTS:
            said = explain(parse_target(f"{name}:{port}"), found, learner.leases, now)
            if name == "localhost":
                loopback = list(found.grants_for(ip_address("127.0.0.1")))
                expected = any(g.ports is None or port in g.ports for g in loopback)
            else:
                grants = found.names.find(host(name))
                expected = any(g.ports is None or port in g.ports for g in grants)
            assert said.allowed is expected
            assert all(lease.port in (port, ANY_PORT) for lease in said.leases)
