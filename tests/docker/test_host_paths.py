"""Programs of the machine that are no engine: skopeo, ctr, curl and what else a user may run.

A catalogued registry that is not allowed is refused to them, everything else is reachable. Every
attempt is first made without ramnet, where it gets through.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from ramnet.lab.dns import records
from ramnet.lab.lab import Lab
from ramnet.lab.programs import require
from ramnet.lab.world import EVIL, GHCR, QUAY
from tests.coverage_table import Cover, Outcome, Section
from tests.docker.support import pull
from tests.netns.places import USER, engine, machine, outcomes
from tests.netns.scoped import (
    PRECISE,
    UNLISTED,
    WEAK,
    Enforced,
    denied,
    enforcing,
    wait_denied,
    wait_not_denied,
)
from tests.netns.support import policy, status

pytestmark = pytest.mark.docker

SECONDS = 5.0  # a refusal takes milliseconds
CORP = "registry.corp.example:5000"
OTHERS = {
    "quay6.example": QUAY[2:],
    "evil6.example": EVIL[1:],
    "deb.example": ("198.51.100.161", "2001:db8::161"),
    "gitlab.com": ("198.51.100.164", "2001:db8::164"),
    "gcr.io": ("198.51.100.165", "2001:db8::165"),  # the catalogue says that others share it
}
# A host of each family, and where it is.
REFUSED = {4: "quay.io", 6: "quay6.example"}
FREE = {4: "evil.example", 6: "evil6.example"}
NAMES = ("quay.io", "ghcr.io", "registry-1.docker.io", "gcr.io")


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that reaches for a registry, and who runs it."""

    row: str
    argv: Callable[[Lab, str], list[str]]
    uid: int = USER


def with_port(host: str) -> str:
    return host if ":" in host else f"{host}:443"


def ctr(lab: Lab, host: str) -> list[str]:
    address = f"--address={lab.engine.socket.parent}/exec/containerd/containerd.sock"
    trust = f"--tlscacert={lab.pki.ca}"
    return [require("ctr"), address, "images", "pull", trust, f"{host}/acme/app:latest"]


def curl(lab: Lab, host: str) -> list[str]:
    return [require("curl"), "-fsS", "--cacert", str(lab.pki.ca), f"https://{host}/v2/"]


def openssl(lab: Lab, host: str) -> list[str]:
    argv = [require("openssl"), "s_client", "-brief", "-verify_return_error"]
    return [*argv, "-CAfile", str(lab.pki.ca), "-connect", with_port(host)]


def python3(_: Lab, host: str) -> list[str]:
    fetch = "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)"
    return [require("python3"), "-I", "-S", "-c", fetch, f"https://{host}/v2/"]


def skopeo(_: Lab, host: str) -> list[str]:
    return [require("skopeo"), "inspect", f"docker://{host}/acme/app"]


def skopeo_push(_: Lab, host: str) -> list[str]:
    source, target = f"docker://{CORP}/acme/app", f"docker://{host}/acme/pushed"
    return [require("skopeo"), "--insecure-policy", "copy", source, target]


TOOLS = {
    "skopeo": Tool("skopeo inspect, run by a user", skopeo),
    "skopeo-push": Tool("skopeo copy to a registry, run by a user", skopeo_push),
    "ctr": Tool("ctr images pull, on the machine's own containerd", ctr, 0),
    "curl": Tool("curl, run by a user", curl),
    "curl-root": Tool("curl, run by root", curl, 0),
    "openssl": Tool("openssl s_client, run by a user", openssl),
    "python": Tool("Python, run by a user", python3),
}


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended."""

    worked: bool
    said: str
    seconds: float


def run(lab: Lab, tool: Tool, host: str) -> Ran:
    home = lab.directory / f"home-{tool.uid}"
    home.mkdir(exist_ok=True)
    os.chown(home, tool.uid, tool.uid)
    begin = time.monotonic()
    env = {"HOME": str(home), "XDG_RUNTIME_DIR": str(home)}
    done = lab.client.run(tool.argv(lab, host), check=False, env=env, user=tool.uid or None)
    worked = done.returncode == 0
    return Ran(worked, done.stdout + done.stderr, time.monotonic() - begin)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    table = records({name: list(addresses) for name, addresses in OTHERS.items()})
    with Lab(engine=True, engine_cgroup=True, records=table, certificate_names=OTHERS) as made:
        yield made


@dataclass(frozen=True, slots=True)
class Control:
    """What the same programs did without ramnet, and the connections that the far side saw."""

    ran: dict[tuple[str, str], Ran]
    syns: int


@pytest.fixture(scope="module")
def control(lab: Lab) -> Control:
    hosts = (*REFUSED.values(), *FREE.values(), CORP)
    with lab.capture() as capture:
        ran = {(name, host): run(lab, tool, host) for name, tool in TOOLS.items() for host in hosts}
        syns = len(capture.to(QUAY, ports=[443]))
    assert pull(lab, "quay.io/acme/app").worked
    return Control(ran, syns)


def test_without_ramnet_every_program_gets_through(control: Control) -> None:
    assert {key: ran for key, ran in control.ran.items() if not ran.worked} == {}
    assert control.syns >= len(TOOLS) * len(REFUSED)


@pytest.mark.parametrize("rung", PRECISE)
def test_host_off_leaves_them_alone(lab: Lab, control: Control, rung: str, cover: Cover) -> None:
    assert control.syns
    with enforcing(lab, rung, policy(CORP), 'host = "off"\n') as made:
        wait_denied(lab.client, *QUAY)  # for containers
        for name in ("skopeo", "ctr", "curl"):
            for host in REFUSED.values():
                ran = run(lab, TOOLS[name], host)
                assert ran.worked, ran.said
        said = status(made.daemon)["classes"]
        assert said["host"]["enforced"] == "off"
        assert said["host"]["because"]
        # The control: containers and the engine are judged as before.
        assert said["containers"]["enforced"] == "catalog"
        assert pull(lab, "quay.io/acme/app").refused
    cover(Section.HOST, "any program, with [scope] host = off", rung, Outcome.FREE)


@pytest.mark.parametrize("rung", PRECISE)
def test_a_registry_that_becomes_allowed_is_reached_at_once(lab: Lab, rung: str) -> None:
    with enforcing(lab, rung, policy(CORP)) as made:
        wait_denied(lab.client, *QUAY)
        assert not run(lab, TOOLS["skopeo"], "quay.io").worked
        made.daemon.write_policy(policy(CORP, "quay.io"))
        wait_not_denied(lab.client, *QUAY)
        ran = run(lab, TOOLS["skopeo"], "quay.io")
        assert ran.worked, ran.said
        assert denied(lab.client, GHCR[0])


# --- one daemon for each rung, so these come last


@pytest.fixture(scope="module")
def enforced(request: pytest.FixtureRequest, lab: Lab, control: Control) -> Iterator[Enforced]:
    assert control.ran
    with enforcing(lab, request.param, policy(CORP)) as made:
        wait_denied(lab.client, *UNLISTED)
        yield made


on_rungs = pytest.mark.parametrize("enforced", PRECISE, indirect=True)
on_all_rungs = pytest.mark.parametrize("enforced", [*PRECISE, *WEAK], indirect=True)


@on_all_rungs
@pytest.mark.parametrize("name", TOOLS)
def test_a_catalogued_registry_is_refused_and_everything_else_is_reachable(
    lab: Lab, enforced: Enforced, name: str, cover: Cover
) -> None:
    tool = TOOLS[name]
    row = tool.row if enforced.rung in PRECISE else f'{tool.row}, [scope] weak = "catalog"'
    for family, host in REFUSED.items():
        ran = run(lab, tool, host)
        assert not ran.worked
        assert ran.seconds < SECONDS
        cover(Section.HOST, row, enforced.rung, Outcome.BY_NAME, family=family)
    assert enforced.leaked() == 0
    for host in (*FREE.values(), CORP):
        ran = run(lab, tool, host)
        assert ran.worked, ran.said


@on_rungs
def test_only_the_registrys_own_port_of_its_own_address_is_refused(
    lab: Lab, enforced: Enforced
) -> None:
    addresses = [(one, 443) for one in UNLISTED]
    for uid in (0, USER):
        assert outcomes(machine(lab.client, uid), addresses) == {"refused"}
        beside = [(one, port) for one in QUAY for port in (8443, 80, 5000)]
        shared = [*((one, 443) for one in OTHERS["gcr.io"]), ("gitlab.com", 443)]
        assert outcomes(machine(lab.client, uid), [(name, 443) for name in NAMES]) == {"unknown"}
        assert outcomes(machine(lab.client, uid), [*beside, *shared, ("deb.example", 80)]) == {
            "reached"
        }
    assert enforced.leaked() == 0
    # The engine is judged by another rule: it reaches nothing of this.
    assert outcomes(engine(lab), [*beside, *shared]) == {"refused"}
