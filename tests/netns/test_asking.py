"""What DNS says of many names at once (host/asking.py), asked of a server that a test scripts."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from ramnet.core.dnsremarks import Said
from ramnet.core.names import HostName
from ramnet.host import resolver
from ramnet.host.asking import LATE, ask_names
from ramnet.lab.sandbox import Sandbox
from tests.netns.dnsworld import (
    Behaviour,
    Heard,
    Saying,
    Script,
    addr,
    alias,
    inside,
    reply,
    silence,
    zone,
)

SERVER = "127.0.0.11"
NAME = HostName("registry.example")
GONE = HostName("gone.example")
GOOD = ip_address("198.51.100.5")
GOOD6 = ip_address("2001:db8::5")
SERVFAIL = 2


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with Sandbox("asking", tmp_path_factory.mktemp("asking")) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def server(box: Sandbox) -> Iterator[Script]:
    with Script(box, SERVER) as script:
        yield script


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that asks the scripted server, and waits a fraction of a second for it."""
    monkeypatch.setattr(resolver, "TIMEOUT_SECONDS", 0.3)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/resolv.conf").write_text(f"nameserver {SERVER}\n")
    return tmp_path


def ask(box: Sandbox, root: Path, *names: HostName, seconds: float = 10) -> dict[HostName, Said]:
    return inside(box, lambda: ask_names(names, root=root, seconds=seconds))


def test_names_that_exist_and_one_that_does_not(
    box: Sandbox, server: Script, machine: Path
) -> None:
    server.behave = zone({NAME: [str(GOOD), str(GOOD6)], "empty.example": []})
    found = ask(box, machine, NAME, GONE, HostName("empty.example"), NAME)
    assert found == {
        NAME: Said(addresses=(GOOD, GOOD6)),
        GONE: Said(exists=False),
        HostName("empty.example"): Said(),
    }


def test_the_chain_of_aliases(box: Sandbox, server: Script, machine: Path) -> None:
    def say(heard: Heard) -> Saying:
        links = [alias(heard.name, "b.example"), alias("b.example", "c.example")]
        if heard.qtype == "A":
            links.append(addr("c.example", str(GOOD)))
        return reply(heard.wire, *links)

    server.behave = say
    chain = (HostName("b.example"), HostName("c.example"))
    assert ask(box, machine, NAME) == {NAME: Said(addresses=(GOOD,), chain=chain)}


def refused_for(qtype: str) -> Behaviour:
    good = zone({NAME: [str(GOOD), str(GOOD6)]})
    return lambda heard: (
        reply(heard.wire, header={"rcode": SERVFAIL}) if heard.qtype == qtype else good(heard)
    )


def test_one_family_is_enough(box: Sandbox, server: Script, machine: Path) -> None:
    server.behave = refused_for("AAAA")
    assert ask(box, machine, NAME) == {NAME: Said(addresses=(GOOD,))}
    server.behave = refused_for("A")
    assert ask(box, machine, NAME) == {NAME: Said(addresses=(GOOD6,))}


def test_no_answer_is_no_word_on_whether_it_exists(
    box: Sandbox, server: Script, machine: Path
) -> None:
    server.behave = lambda heard: reply(heard.wire, header={"rcode": SERVFAIL})
    (said,) = ask(box, machine, NAME).values()
    assert said.exists
    assert said.error == f"{SERVER}: rcode {SERVFAIL}"
    # The half that says nothing may be the one with addresses.
    honest = zone({NAME: []})
    server.behave = lambda heard: silence(heard) if heard.qtype == "A" else honest(heard)
    assert ask(box, machine, NAME)[NAME].error


def test_a_silent_server_keeps_nobody_waiting(box: Sandbox, server: Script, machine: Path) -> None:
    server.behave = silence
    names = [HostName(f"r{number}.example") for number in range(40)]
    found = ask(box, machine, *names, seconds=0.1)
    assert [said.error for said in found.values()] == [LATE] * len(names)


def test_the_hosts_file_is_told_beside_it(box: Sandbox, server: Script, machine: Path) -> None:
    (machine / "etc/hosts").write_text(f"192.0.2.7 {NAME}\n192.0.2.8 {GONE}\n")
    server.behave = zone({NAME: [str(GOOD)]})
    assert ask(box, machine, NAME, GONE) == {
        NAME: Said(addresses=(GOOD,), local=(ip_address("192.0.2.7"),)),
        GONE: Said(exists=False, local=(ip_address("192.0.2.8"),)),
    }


def test_nothing_is_asked_where_nothing_is_wanted(
    box: Sandbox, server: Script, machine: Path
) -> None:
    server.behave = silence
    assert ask(box, machine) == {}
