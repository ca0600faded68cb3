"""Audit: nothing is refused, and what would be is on record; then the same policy enforces.

The judge of what passes is a capture at the far side, as for what does not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.programs import require
from ramnet.lab.ramnet import Daemon
from ramnet.lab.world import EVIL, GHCR, QUAY
from tests.docker.support import docker, pull
from tests.netns.activity import activity, wait_record
from tests.netns.places import USER
from tests.netns.scoped import wait_denied
from tests.netns.support import policy, put_policy, status

pytestmark = pytest.mark.docker

BY_ENGINE, BY_USER, BY_CONTAINER = "evil.example", "quay.io", "ghcr.io"
IN_FORCE_SECONDS = 2.0


def with_mode(mode: str) -> str:
    more = f'\n[enforcement]\nmode = "{mode}"\n'
    return policy("docker.io", more=more, on_deny=None)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(engine=True, engine_cgroup=True) as made:
        assert docker(made, "pull", "busybox").worked
        yield made


@pytest.fixture(scope="module")
def auditing(lab: Lab) -> Iterator[Daemon]:
    daemon = lab.daemon(with_mode("audit"))
    wait_denied(lab.client, *QUAY, *GHCR)
    yield daemon
    assert daemon.cli("off").returncode == 0
    daemon.wait()


def by_engine(lab: Lab) -> bool:
    return pull(lab, f"{BY_ENGINE}/acme/app").worked


def by_user(lab: Lab) -> bool:
    argv = [require("curl"), "-fsS", "--cacert", str(lab.pki.ca), f"https://{BY_USER}/v2/"]
    return lab.client.run(argv, check=False, user=USER).returncode == 0


def by_container(lab: Lab) -> bool:
    knock = f"nc -w 3 {BY_CONTAINER} 443 </dev/null"
    return docker(lab, "run", "--rm", "busybox", "sh", "-c", knock).worked


# What is attempted, and what the record has to say of it.
ATTEMPTS: dict[str, tuple[Callable[[Lab], bool], str, tuple[str, ...]]] = {
    "engine": (by_engine, BY_ENGINE, EVIL),
    "host": (by_user, BY_USER, QUAY),
    "containers": (by_container, BY_CONTAINER, GHCR),
}


def test_status_says_that_it_only_watches(auditing: Daemon) -> None:
    done = auditing.cli("status", "--json")
    said = json.loads(done.stdout)
    assert said["state"] == "auditing"
    assert done.returncode == 0
    assert any("audit" in line for line in (*said["warnings"], *said["not_covered"]))


@pytest.mark.parametrize("who", ATTEMPTS)
def test_what_would_be_refused_passes_and_is_recorded(lab: Lab, auditing: Daemon, who: str) -> None:
    attempt, name, addresses = ATTEMPTS[who]
    with lab.capture() as capture:
        assert attempt(lab)
        assert capture.to(addresses, ports=[443])
    record = wait_record(auditing, verdict="would-deny", name=name, **{"class": who})
    assert record["address"] in addresses
    assert record["port"] == 443
    assert record["why"]


def test_what_is_allowed_is_not_recorded(lab: Lab, auditing: Daemon) -> None:
    with lab.capture() as capture:
        assert docker(lab, "pull", "busybox").worked
        assert capture.syns
    assert by_engine(lab)
    wait_record(auditing, verdict="would-deny", name=BY_ENGINE)
    assert not [one for one in activity(auditing) if "docker.io" in str(one["name"])]


def test_the_policy_is_on_record(auditing: Daemon) -> None:
    record = wait_record(auditing, verdict="policy", file=str(auditing.policy_file))
    assert record["digest"] == status(auditing)["policy"]["digest"]


def test_the_same_policy_enforces_as_soon_as_it_says_so(lab: Lab, auditing: Daemon) -> None:
    """The last of this file: it goes on as it is left."""
    assert not [one for one in activity(auditing) if one["verdict"] == "denied"]
    auditing.write_policy(with_mode("enforce"))
    begin = time.monotonic()
    wait_until(lambda: status(auditing)["state"] == "enforcing", IN_FORCE_SECONDS, "enforcing")
    assert time.monotonic() - begin < IN_FORCE_SECONDS
    wait_denied(lab.client, *QUAY, *GHCR)
    for who, (attempt, name, addresses) in ATTEMPTS.items():
        with lab.capture() as capture:
            assert not attempt(lab)
            assert capture.to(addresses) == ()
        record = wait_record(auditing, verdict="denied", name=name, **{"class": who})
        assert record["why"]
    digest = status(auditing)["policy"]["digest"]
    wait_record(auditing, verdict="policy", digest=digest)
    assert {one["verdict"] for one in activity(auditing, "--verdict", "denied")} == {"denied"}

    before = activity(auditing, "--verdict", "denied")
    put_policy(auditing, with_mode("audit"))
    assert status(auditing)["state"] == "auditing"
    with lab.capture() as capture:
        assert by_engine(lab)
        assert capture.to(EVIL)
    assert len(activity(auditing, "--verdict", "denied")) == len(before)
