"""Mode ``hold``: raw forged answers teach nothing, and how far that goes on the machine itself.

Whoever forges has a query of his own outstanding and knows all about it: ports, ID, question,
sequence numbers. What is left to tell a lie by is where it comes from. So each lie is told again
with that defence taken out, and then it is believed.

How far it goes: a container on a bridge and an ordinary user are held for every resolver. A root
program with ``NET_RAW`` in the machine's own network (a container with ``--network=host``) is held

- for a remote resolver, with raw IP sockets and with packet sockets on ``lo``;
- for a resolver on ``lo`` that runs as another user: with raw IP sockets, and with packet sockets
  for IPv4 over UDP, which the kernel takes for martians.

It is not held for a resolver on ``lo`` that runs as root, nor with packet sockets on ``lo`` for TCP
(early demultiplexing spares an established connection the check for martians) and for IPv6 (which
has no such check): such frames pass no rule on output and arrive without a sender.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
import time
from collections.abc import Iterator

import pytest

from ramnet.lab import topology
from ramnet.lab.lab import Lab
from ramnet.lab.sandbox import Sandbox
from tests.netns.dnsworld import (
    LEARN_SECONDS,
    addr,
    learned,
    query,
    reply,
    socket_in,
    wait_learned,
)
from tests.netns.forgery import (
    MARTIANS,
    PROTOCOLS,
    RESOLVERS,
    UPSTREAM,
    WSL,
    Outstanding,
    Stage,
    Teller,
    answers_by,
    believed,
    ignored,
    stage,
    sysctl,
)
from tests.netns.localdns import DROPPED, NO_RAW_SOCKET, NOBODY, Forged, send, udp_packet


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(registries=False) as made:
        made.client.run(["ip", "address", "add", f"{WSL}/32", "dev", "lo"])
        sysctl(made.client, "lo", 0, "rp_filter")
        yield made


@pytest.fixture(scope="module")
def container(lab: Lab) -> Sandbox:
    """A container on a bridge that lets everything in: what the kernel refuses proves nothing."""
    made = lab.container()
    sysctl(lab.client, topology.BRIDGE, 1, *MARTIANS)
    return made


LOOK_SECONDS = 5.0  # two looks, and slack
PORTS = "/proc/sys/net/ipv4/ip_unprivileged_port_start"


def staged(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("made", names, indirect=True)


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Stage]:
    with stage(lab, RESOLVERS[request.param]) as found:
        yield found


def teller(sandbox: Sandbox, who: str) -> Teller:
    """Tell lies by a program in a sandbox; see ``localdns.send`` for ``who``."""
    return lambda lie: send(sandbox, [lie], who)


# --- a container on a bridge


@staged("remote", "stub", "wsl", "stub-of-root", "wsl-of-root")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_bridge_container(made: Stage, container: Sandbox, protocol: str) -> None:
    gateway = topology.BRIDGE_V4
    asked = ignored(made, protocol, teller(container, "raw"), gateway)
    assert asked.heard()  # the program itself believes it
    with answers_by(made.client, made.where.address, topology.BRIDGE):
        believed(made, protocol, teller(container, "raw"), gateway)


# --- root programs that share the machine's network


@staged("remote")
@pytest.mark.parametrize("who", ["raw", "frames"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_host_network_container_and_a_remote_resolver(
    made: Stage, protocol: str, who: str
) -> None:
    """What it sends to the machine itself comes in by ``lo``, where that resolver is not."""
    asked = ignored(made, protocol, teller(made.client, who))
    assert asked.heard()
    with answers_by(made.client, made.where.address, "lo"):
        believed(made, protocol, teller(made.client, who))


@staged("stub", "wsl", "stub6")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_host_network_container_and_a_local_resolver_of_another_user(
    made: Stage, protocol: str
) -> None:
    before = made.imposters()
    asked = made.ask(protocol)
    assert send(made.client, [asked.lie()]) == DROPPED
    made.honest(protocol)
    assert not learned(made.client, asked.bad)
    assert made.imposters() == before + 1
    assert asked.silence()


LOCAL_WITHOUT_RULE = ("stub-without-the-rule", "wsl-without-the-rule", "stub6-without-the-rule")


@staged(*LOCAL_WITHOUT_RULE)
@pytest.mark.parametrize("who", ["raw", "user-with-raw"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_without_the_rule_on_imposters_a_local_resolver_is_forged(
    made: Stage, protocol: str, who: str
) -> None:
    """The control for every lie on ``lo`` that the rule keeps from arriving."""
    believed(made, protocol, teller(made.client, who))


@staged("stub-of-root", "wsl-of-root")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_not_held_a_host_network_container_and_a_local_resolver_of_root(
    made: Stage, protocol: str
) -> None:
    """The users are the same: nothing tells the forger from the resolver (threat model)."""
    believed(made, protocol, teller(made.client, "raw"))


@staged("stub", "wsl", "stub-of-root", "wsl-of-root")
def test_a_host_network_container_with_a_packet_socket_on_lo(made: Stage) -> None:
    """A frame written to ``lo`` passes no rule on output; the kernel takes it for a martian."""
    asked = ignored(made, "udp", teller(made.client, "frames"))
    assert asked.silence()
    sysctl(made.client, "lo", 1, *MARTIANS)
    try:
        believed(made, "udp", teller(made.client, "frames"))
    finally:
        sysctl(made.client, "lo", 0, *MARTIANS)


@staged("stub", "wsl", "stub-of-root", "wsl-of-root")
def test_not_held_a_host_network_container_with_a_packet_socket_on_lo_and_tcp(
    made: Stage,
) -> None:
    """Early demultiplexing takes the route of the connection: no check for martians."""
    believed(made, "tcp", teller(made.client, "frames"))


@staged("stub6")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_not_held_a_host_network_container_with_a_packet_socket_on_lo_and_ipv6(
    made: Stage, protocol: str
) -> None:
    """IPv6 knows no martians: on ``lo`` it takes ``::1`` from anybody."""
    believed(made, protocol, teller(made.client, "frames"))


# --- an ordinary user


@staged("remote", "stub", "wsl", "stub-of-root", "wsl-of-root", "stub6")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_ordinary_user(made: Stage, protocol: str) -> None:
    asked = made.ask(protocol)
    lie = [asked.lie()]
    assert send(made.client, lie, "user") == NO_RAW_SOCKET
    assert asked.silence()
    # With the kernel's own defence out of the way, ramnet's is left.
    asked = made.ask(protocol)
    said = send(made.client, [asked.lie()], "user-with-raw")
    made.honest(protocol)
    assert not learned(made.client, asked.bad)
    if made.where.local:
        assert said == DROPPED
        assert asked.silence()
        return  # for the control see LOCAL_WITHOUT_RULE
    assert asked.heard()
    with answers_by(made.client, made.where.address, "lo"):
        believed(made, protocol, teller(made.client, "user-with-raw"))


@staged("stub", "wsl", "stub6")
def test_an_ordinary_user_who_shares_the_resolvers_port(made: Stage) -> None:
    """Ports are free on some machines (rootless containers), and resolvers share theirs."""
    asked = made.ask("udp")
    message = reply(asked.wire, addr(asked.name, asked.bad))
    said = answer_as_user(made, asked, message)
    assert said == "EACCES"
    made.client.run(["/bin/sh", "-c", f"echo 53 >{PORTS}"])
    try:
        assert answer_as_user(made, asked, message) == "EPERM"  # a rule on output
    finally:
        made.client.run(["/bin/sh", "-c", f"echo 1024 >{PORTS}"])
    made.honest()
    assert not learned(made.client, asked.bad)


@staged("stub-without-the-rule")
def test_without_the_rule_on_imposters_the_resolvers_port_can_be_shared(made: Stage) -> None:
    asked = made.ask("udp")
    message = reply(asked.wire, addr(asked.name, asked.bad))
    made.client.run(["/bin/sh", "-c", f"echo 53 >{PORTS}"])
    try:
        assert answer_as_user(made, asked, message) == ""
    finally:
        made.client.run(["/bin/sh", "-c", f"echo 1024 >{PORTS}"])
    wait_learned(made.client, asked.bad)


@staged("stub", "stub-that-everybody-may-serve")
def test_an_ordinary_user_who_shares_the_resolvers_port_for_long(made: Stage) -> None:
    """Who answers there is looked up every 2 s; where anybody may, persons do not count."""
    asked = made.ask("udp")
    message = reply(asked.wire, addr(asked.name, asked.bad))
    made.client.run(["/bin/sh", "-c", f"echo 53 >{PORTS}"])
    try:
        with socket_in(made.client, made.where.address, socket.SOCK_DGRAM, 53) as shared:
            os.fchown(shared.fileno(), NOBODY, NOBODY)  # as /proc/net shows it
            time.sleep(LOOK_SECONDS)
            said = answer_as_user(made, asked, message)
    finally:
        made.client.run(["/bin/sh", "-c", f"echo 1024 >{PORTS}"])
    if made.where.patch:  # the control
        assert said == ""
        wait_learned(made.client, asked.bad)
        return
    assert said == "EPERM"
    made.honest()
    assert not learned(made.client, asked.bad)


_ANSWER = """
import base64, errno, json, os, socket, sys
user, source, target, text = json.load(sys.stdin)
os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user)
family = socket.AF_INET6 if ":" in source else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((source, 53))
        sock.sendto(base64.b64decode(text), tuple(target))
    except OSError as err:
        sys.exit(errno.errorcode[err.errno])
"""


def answer_as_user(made: Stage, asked: Outstanding, message: bytes) -> str:
    """Answer from an ordinary socket at the resolver's own port; return the error, if any."""
    told = [NOBODY, made.where.address, asked.sock.getsockname()[:2]]
    given = json.dumps([*told, base64.b64encode(message).decode()])
    argv = [sys.executable, "-I", "-S", "-c", _ANSWER]
    return made.client.run(argv, input=given, check=False).stderr.strip()


# --- what containers hear


def ask_in_container(made: Stage, container: Sandbox) -> tuple[str, str]:
    """Have the container ask and be answered honestly; return the name and its address."""
    name, address = made.fresh()
    made.truth[name] = address
    with socket_in(container, "0.0.0.0", socket.SOCK_DGRAM) as sock:
        sock.settimeout(LEARN_SECONDS)
        sock.sendto(query(name), (UPSTREAM, 53))
        assert sock.recv(4096)
    return name, address


@staged("remote", "stub")
def test_what_a_container_hears_teaches_nothing(made: Stage, container: Sandbox) -> None:
    _, address = ask_in_container(made, container)
    made.honest()
    assert not learned(made.client, address)


@staged("remote-teaching-what-is-forwarded")
def test_without_that_defence_it_teaches(made: Stage, container: Sandbox) -> None:
    _, address = ask_in_container(made, container)
    wait_learned(made.client, address)


@staged("remote")
def test_a_container_that_forges_the_answer_to_its_own_query(
    made: Stage, container: Sandbox
) -> None:
    """The query is forwarded under the machine's own address, and so is open there as well."""
    name, bad = made.fresh()
    with socket_in(container, "0.0.0.0", socket.SOCK_DGRAM) as sock:
        sock.sendto(wire := query(name), (UPSTREAM, 53))
        heard = made.script.wait(name)
        lie = reply(wire, addr(name, bad))
        target = (topology.CLIENT_V4, heard.port)
        forged = Forged(udp_packet((UPSTREAM, 53), target, lie), target[0], topology.BRIDGE_V4)
        send(container, [forged])
        made.honest()
        assert not learned(made.client, bad)
