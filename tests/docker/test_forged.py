"""Forged answers from real containers, with the capabilities that Docker gives them by default.

How far it goes is said in ``tests/netns/test_forged_hold.py``; here the same lies are told by a
container on a bridge, one with ``--network=host``, and an ordinary user in such a one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from ramnet.lab.lab import Lab
from tests.docker.containers import PYTHON, container
from tests.docker.support import pull
from tests.netns.dnsworld import learned, wait_learned
from tests.netns.forgery import (
    PROTOCOLS,
    RESOLVERS,
    WSL,
    Stage,
    Teller,
    answers_by,
    believed,
    ignored,
    stage,
    sysctl,
)
from tests.netns.localdns import DROPPED, NO_RAW_SOCKET, NOBODY, SENDER, Forged, sender_input

pytestmark = pytest.mark.docker

DOCKER_BRIDGE = "docker0"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(engine=True) as made:
        made.client.run(["ip", "address", "add", f"{WSL}/32", "dev", "lo"])
        sysctl(made.client, "lo", 0, "rp_filter")
        assert pull(made, "busybox").worked
        yield made


@pytest.fixture(scope="module")
def bridged(lab: Lab) -> Iterator[str]:
    with container(lab) as name:
        yield name


@pytest.fixture(scope="module")
def hosted(lab: Lab) -> Iterator[str]:
    with container(lab, "--network=host") as name:
        yield name


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Stage]:
    with stage(lab, RESOLVERS[request.param]) as found:
        yield found


def staged(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("made", names, indirect=True)


def tell(lab: Lab, where: str, lie: Forged, who: str = "raw", *options: str) -> str:
    """Send a packet from within a container; return what kept it from being sent, if anything."""
    argv = ["docker", "exec", "--interactive", *options, where]
    argv += [str(PYTHON), "-I", "-S", "-c", SENDER]
    environment = {"DOCKER_HOST": f"unix://{lab.engine.socket}"}
    done = lab.client.run(argv, input=sender_input([lie], who), check=False, env=environment)
    said = done.stderr.strip()
    assert said in ("", NO_RAW_SOCKET, DROPPED), said
    return said


def teller(lab: Lab, where: str, who: str = "raw") -> Teller:
    return lambda lie: tell(lab, where, lie, who)


def test_what_containers_may_do_here(lab: Lab, bridged: str, hosted: str) -> None:
    """Docker's own defaults: NET_RAW, but neither NET_ADMIN nor SYS_ADMIN."""
    for name in (bridged, hosted):
        found = json.loads(lab.engine.docker("inspect", name, check=True).stdout)[0]["HostConfig"]
        assert (found["Privileged"], found["CapAdd"], found["CapDrop"]) == (False, None, None)


@staged("remote")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_bridge_container(made: Stage, bridged: str, protocol: str) -> None:
    lies = teller(made.lab, bridged)
    assert ignored(made, protocol, lies).heard()  # the program that asked believes it
    with answers_by(made.client, made.where.address, DOCKER_BRIDGE):
        believed(made, protocol, lies)


@staged("stub", "wsl")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_bridge_container_and_a_local_resolver(made: Stage, bridged: str, protocol: str) -> None:
    """The kernel keeps the machine's own addresses out of its bridges; ramnet's rules as well."""
    lies = teller(made.lab, bridged)
    shown = ("inspect", "--format", "{{.NetworkSettings.Gateway}}", bridged)
    gateway = made.lab.engine.docker(*shown, check=True).stdout.strip()
    assert ignored(made, protocol, lies, gateway).silence()
    sysctl(made.client, DOCKER_BRIDGE, 1, "accept_local", "route_localnet")
    try:
        assert ignored(made, protocol, lies, gateway).heard()
        with answers_by(made.client, made.where.address, DOCKER_BRIDGE):
            believed(made, protocol, lies, gateway)
    finally:
        sysctl(made.client, DOCKER_BRIDGE, 0, "accept_local", "route_localnet")


@staged("remote")
@pytest.mark.parametrize("who", ["raw", "frames"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_host_network_container_and_a_remote_resolver(
    made: Stage, hosted: str, protocol: str, who: str
) -> None:
    lies = teller(made.lab, hosted, who)
    assert ignored(made, protocol, lies).heard()
    with answers_by(made.client, made.where.address, "lo"):
        believed(made, protocol, lies)


@staged("stub", "wsl", "stub6")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_host_network_container_and_a_local_resolver_of_another_user(
    made: Stage, hosted: str, protocol: str
) -> None:
    before = made.imposters()
    asked = made.ask(protocol)
    assert tell(made.lab, hosted, asked.lie()) == DROPPED
    made.honest(protocol)
    assert not learned(made.client, asked.bad)
    assert made.imposters() == before + 1


@staged("stub-without-the-rule", "wsl-without-the-rule", "stub6-without-the-rule")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_without_the_rule_on_imposters_a_local_resolver_is_forged(
    made: Stage, hosted: str, protocol: str
) -> None:
    believed(made, protocol, teller(made.lab, hosted))


@staged("stub-of-root")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_not_held_a_host_network_container_and_a_local_resolver_of_root(
    made: Stage, hosted: str, protocol: str
) -> None:
    believed(made, protocol, teller(made.lab, hosted))


@staged("stub")
def test_a_host_network_container_with_a_packet_socket_on_lo(made: Stage, hosted: str) -> None:
    """UDP over IPv4: for the kernel it is a martian."""
    assert ignored(made, "udp", teller(made.lab, hosted, "frames")).silence()


@staged("stub")
def test_not_held_a_host_network_container_with_a_packet_socket_on_lo_and_tcp(
    made: Stage, hosted: str
) -> None:
    believed(made, "tcp", teller(made.lab, hosted, "frames"))


@staged("stub6")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_not_held_a_host_network_container_with_a_packet_socket_on_lo_and_ipv6(
    made: Stage, hosted: str, protocol: str
) -> None:
    believed(made, protocol, teller(made.lab, hosted, "frames"))


@staged("remote", "stub", "stub-of-root")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_ordinary_user_in_a_host_network_container(
    made: Stage, hosted: str, protocol: str
) -> None:
    """Docker gives no capability to a user; the control is root in the same container."""
    asked = made.ask(protocol)
    for who in ("raw", "frames"):
        said = tell(made.lab, hosted, asked.lie(), who, "--user", f"{NOBODY}:{NOBODY}")
        assert said == NO_RAW_SOCKET
    made.honest(protocol)
    assert not learned(made.client, asked.bad)
    if made.where.user == 0:
        believed(made, protocol, teller(made.lab, hosted))


@staged("remote")
def test_a_lie_opens_no_way(made: Stage, bridged: str, hosted: str) -> None:
    """The judge at the far side: the address of the lie is not reached from this machine."""
    asked = made.ask("udp")
    for where in (bridged, hosted):
        tell(made.lab, where, asked.lie())
    made.honest()
    name, good = made.fresh()
    made.truth[name] = good
    made.look_up(name, "udp")
    wait_learned(made.client, good)
    with made.lab.capture() as capture:
        for address in (asked.bad, good):
            made.client.run(["/bin/busybox", "nc", "-w", "1", address, "443"], check=False)
        assert capture.to([asked.bad]) == ()
        assert capture.to([good])
