"""A daemon that comes up in trouble: closed all along, and in force soon after the cause is gone.

What a boot may meet that the daemon cannot help: no network yet, a server that is down, a file that
somebody broke. The far side is the judge from before the start.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest

from ramnet.lab.lab import Lab
from ramnet.lab.ramnet import Daemon
from ramnet.lab.topology import CLIENT_V6, DNS_V4, DNS_V6, UPLINK, WORLD_V4, WORLD_V6
from ramnet.lab.world import EVIL
from tests.netns.support import (
    ALLOWED,
    CORP_REGISTRY,
    DENIED,
    DUAL_REGISTRY,
    REFUSED,
    Ramnet,
    attempt,
    outcomes,
    policy,
    status,
    wait_status,
)

pytestmark = pytest.mark.netns

POLICY = policy(CORP_REGISTRY, DUAL_REGISTRY)
HEALED_SECONDS = 30.0  # the issue's own limit
# Long enough for a pace that doubles to have become slower than that limit.
LONG_TROUBLE_SECONDS = 40.0
SHORT_TROUBLE_SECONDS = 1.5
SOON_SECONDS = 10.0

Trouble = Callable[[Lab, Daemon], AbstractContextManager[None]]

SILENCE = """
table inet silence {
  chain input {
    type filter hook input priority 0
    meta l4proto { tcp, udp } th dport 53 drop
  }
}
"""


@contextmanager
def no_dns(lab: Lab, _daemon: Daemon) -> Iterator[None]:
    """The server is down: its machine says so (ICMP)."""
    lab.dns.stop()
    try:
        yield
    finally:
        lab.dns.start()


@contextmanager
def silent_dns(lab: Lab, _daemon: Daemon) -> Iterator[None]:
    """Nothing comes back."""
    lab.world.run(["nft", "-f", "-"], input=SILENCE)
    try:
        yield
    finally:
        lab.world.run(["nft", "delete", "table", "inet", "silence"])


@contextmanager
def no_default_route(lab: Lab, _daemon: Daemon) -> Iterator[None]:
    lab.client.run(["ip", "route", "del", "default"])
    lab.client.run(["ip", "-6", "route", "del", "default"])
    try:
        yield
    finally:
        add_routes(lab)


def add_routes(lab: Lab) -> None:
    lab.client.run(["ip", "route", "add", "default", "via", WORLD_V4])
    lab.client.run(["ip", "route", "add", "default", "via", WORLD_V6, "dev", UPLINK])


@contextmanager
def no_link(lab: Lab, _daemon: Daemon) -> Iterator[None]:
    """The cable is plugged in later; with it go IPv6 addresses and all routes."""
    lab.client.run(["ip", "link", "set", UPLINK, "down"])
    try:
        yield
    finally:
        lab.client.run(["ip", "link", "set", UPLINK, "up"])
        lab.client.run(["ip", "address", "replace", f"{CLIENT_V6}/64", "dev", UPLINK, "nodad"])
        add_routes(lab)


@contextmanager
def no_resolvers(lab: Lab, _daemon: Daemon) -> Iterator[None]:
    """Nobody has written resolv.conf yet."""
    lab.client.set_resolvers()
    try:
        yield
    finally:
        lab.client.set_resolvers(DNS_V4, DNS_V6)


@contextmanager
def broken_policy(_lab: Lab, daemon: Daemon) -> Iterator[None]:
    daemon.write_policy(POLICY.replace('"acme"', '"acme'))
    try:
        yield
    finally:
        daemon.write_policy(POLICY)


@contextmanager
def no_policy(_lab: Lab, daemon: Daemon) -> Iterator[None]:
    daemon.policy_file.unlink()
    try:
        yield
    finally:
        daemon.write_policy(POLICY)


TROUBLES = (no_dns, silent_dns, no_default_route, no_link, no_resolvers, broken_policy, no_policy)
WITHOUT_POLICY = {broken_policy, no_policy}


def enforcing(daemon: Daemon, seconds: float) -> float:
    """Wait until all of the policy is in force; return how long that took."""
    begin = time.monotonic()
    wait_status(
        daemon,
        lambda said: (
            (said["state"], said["leases"], said["denied"]) == ("enforcing", len(ALLOWED), DENIED)
        ),
        "all of the policy in force",
        seconds,
    )
    return time.monotonic() - begin


def start_in(
    lab: Lab,
    ramnet: Ramnet,
    troubles: tuple[Trouble, ...],
    *,
    lasting: float = SHORT_TROUBLE_SECONDS,
    within: float = SOON_SECONDS,
) -> None:
    """Start in trouble, let it last, end it, and see what becomes of it."""
    daemon = ramnet(POLICY, start=False)
    with lab.capture() as capture:
        with ExitStack() as stack:
            for trouble in troubles:
                stack.enter_context(trouble(lab, daemon))
            daemon.start()
            time.sleep(lasting)
            locked = bool(WITHOUT_POLICY.intersection(troubles))
            assert status(daemon)["state"] == ("locked-down" if locked else "enforcing")
            assert "connected" not in outcomes(lab.client, *REFUSED)
        took = enforcing(daemon, within)
        assert attempt(lab.client, *ALLOWED) == dict.fromkeys(ALLOWED, "connected")
        assert attempt(lab.client, *REFUSED) == dict.fromkeys(REFUSED, "refused")
        assert capture.to(EVIL) == ()
    named = " ".join(trouble.__name__ for trouble in troubles)
    sys.stdout.write(f"{named} for {lasting:g} s: in force {took:.1f} s after it\n")


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_start_in_trouble_heals_soon(lab: Lab, ramnet: Ramnet, trouble: Trouble) -> None:
    start_in(lab, ramnet, (trouble,))


def test_a_start_in_all_of_it_at_once_heals_soon(lab: Lab, ramnet: Ramnet) -> None:
    start_in(lab, ramnet, (no_dns, no_link, no_resolvers, broken_policy))


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(no_dns, marks=pytest.mark.thorough),
        pytest.param(silent_dns, marks=pytest.mark.thorough),
        no_default_route,
    ],
)
def test_trouble_that_lasts_heals_as_soon(lab: Lab, ramnet: Ramnet, trouble: Trouble) -> None:
    """What failed again and again is not asked for more and more seldom."""
    start_in(lab, ramnet, (trouble,), lasting=LONG_TROUBLE_SECONDS, within=HEALED_SECONDS)


@pytest.fixture
def read_only(lab: Lab, ramnet: Ramnet) -> Iterator[Daemon]:
    """A daemon whose policy and state directory are on mounts that are read-only."""
    daemon = ramnet(POLICY, start=False)
    etc = daemon.policy_file.parent / "etc"
    etc.mkdir()
    daemon.policy_file.unlink()
    daemon.policy_file = etc / "policy.toml"
    folders = [str(etc), str(daemon.state_dir)]
    for folder in folders:
        lab.client.run(["mount", "--bind", folder, folder])
        lab.client.run(["mount", "-o", "remount,bind,ro", folder])
    yield daemon
    daemon.abandon()
    for folder in folders:
        lab.client.run(["umount", folder])


@pytest.mark.parametrize("valid", [True, False])
def test_what_is_read_only_is_no_trouble(lab: Lab, read_only: Daemon, *, valid: bool) -> None:
    """In the daemon's sight; the lab writes beside the mounts."""
    read_only.write_policy(POLICY if valid else "version = 1\norganization = ")
    with lab.capture() as capture:
        read_only.start()
        assert lab.client.run(["touch", str(read_only.policy_file)], check=False).returncode
        if not valid:
            assert status(read_only)["state"] == "locked-down"
            assert "connected" not in outcomes(lab.client, *REFUSED, *ALLOWED)
            read_only.write_policy(POLICY)
        enforcing(read_only, SOON_SECONDS)
        assert attempt(lab.client, *REFUSED) == dict.fromkeys(REFUSED, "refused")
        assert capture.to(EVIL) == ()
