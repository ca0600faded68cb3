"""A lie in DNS teaches nothing: no forged, unasked or crooked answer opens an address.

The kernel's set is the judge, and at the end a connect with a capture at the far side. Each lie is
followed by the same exchange told honestly, which must teach: so the lie did not fail for another
reason. Where a defence has a place in the rules or the code, it is taken out once, and the same
lie is believed.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import pairwise

import pytest
from dnslib import QTYPE, RD, RR, DNSQuestion

from ramnet.lab import topology
from ramnet.lab.forge import Datagram, forge
from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.sandbox import Sandbox
from tests.netns.dnsworld import (
    LEARN_SECONDS,
    MODES,
    SERVERS,
    Asked,
    Attempt,
    Clients,
    Heard,
    Script,
    World,
    addr,
    alias,
    connect_all,
    inside,
    learned,
    leases,
    patched,
    policy,
    query,
    replaced,
    reply,
    resolvers,
    silence,
    status,
    wait_learned,
)
from tests.netns.support import remove_rules

SERVER, SERVER6 = SERVERS
LIAR = "203.0.113.67"  # a server that answers like any other, but that nobody trusts
POLICY = policy("*.wild.example")
QUERY_SECONDS = 10.0  # how long ramnet waits for an answer

NO_QUERY, MALFORMED = "no-matching-query", "malformed"
NO_ADDRESS, NOT_TEACHABLE = "no-address", "address-not-teachable"
NOT_ALLOWED = "name-not-allowed"


@pytest.fixture(scope="module", params=MODES)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    mode = str(request.param)
    with Lab() as lab, Script(lab.world, *SERVERS) as script:
        lab.client.set_resolvers(*SERVERS)
        made = World(lab, script, lab.daemon(POLICY, config=MODES[mode]), mode)
        assert status(made.daemon)["dns"]["mode"] == mode
        yield made


@pytest.fixture
def clients(world: World) -> Iterator[Clients]:
    world.script.behave = silence
    with Clients(world.client, topology.CLIENT_V4, topology.CLIENT_V6) as made:
        yield made


@contextmanager
def believed(sandbox: Sandbox, address: str, interface: str) -> Iterator[None]:
    """Believe a server that is asked and answers by an interface, and undo that."""
    version = 6 if ":" in address else 4
    pair = f"{{ {address} . {interface} }}"
    where = [
        ["element", "inet", "ramnet", name, pair]
        for name in (f"resolvers{version}", f"answerers{version}")
    ]
    for one in where:
        sandbox.run(["nft", "add", *one])
    try:
        yield
    finally:
        for one in where:
            sandbox.run(["nft", "delete", *one])


def to_client(asked: Asked, payload: bytes, *, src: str = "", sport: int = 53) -> Datagram:
    """Address a datagram as the answer to a query."""
    return Datagram(src or asked.server, sport, asked.client, asked.port, payload)


def outstanding(world: World, clients: Clients, qtype: str = "A", server: str = SERVER) -> Asked:
    """Have a client ask for a fresh allowed name; the query is on its way and unanswered."""
    asked = clients.ask(server, query(world.name(), qtype))
    world.script.wait(asked.name)
    return asked


def heard_of(world: World, asked: Asked) -> Heard:
    return world.script.wait(asked.name)


# --- what an answer says


@dataclass(frozen=True, slots=True)
class Exchange:
    """A query, its name, and the address that a lie tries to smuggle in."""

    query: bytes
    name: str
    bad: str

    @classmethod
    def of(cls, asked: Asked | Heard, bad: str) -> Exchange:
        return cls(asked.wire, asked.name, bad)

    @property
    def record(self) -> RR:
        """The record that an honest answer would hold."""
        return addr(self.name, self.bad)

    @property
    def id(self) -> int:
        return int.from_bytes(self.query[:2], "big")


Tell = Callable[[Exchange], bytes]


@dataclass(frozen=True, slots=True)
class Lie:
    """An answer of the trusted server in the client's own flow, wrong in one thing.

    ``why`` is the reason that ``status`` counts for it. ``told`` says whether the lie holds the
    address of the exchange, so that a connect to it proves anything. ``plain`` is a lie that its
    question gives away: mode ``hold`` lets such an answer pass without a closer look.
    """

    name: str
    tell: Tell
    why: str
    qtype: str = "A"
    told: bool = True
    plain: bool = False


def honest(it: Exchange) -> bytes:
    return reply(it.query, it.record)


def plain(asked: Asked | Heard, address: str) -> bytes:
    """Answer a query with one address, as an honest server does."""
    return honest(Exchange.of(asked, address))


def as_if_asked(name: str, qtype: str = "A", bad: str = "", qclass: int = 1) -> Tell:
    """Answer another question than the one that was asked; ``{}`` stands for the name asked."""

    def tell(it: Exchange) -> bytes:
        asks = DNSQuestion(name.format(it.name), QTYPE.reverse[qtype], qclass)
        return reply(it.query, addr(name.format(it.name), bad or it.bad), questions=[asks])

    return tell


def header(**fields: int) -> Tell:
    """Answer with other fields in the header."""
    return lambda it: honest_but(it, fields)


def honest_but(it: Exchange, fields: dict[str, int]) -> bytes:
    return reply(it.query, it.record, header=fields)


def address(bad: str) -> Tell:
    """Answer with an address that nobody may be led to."""
    return lambda it: reply(it.query, addr(it.name, bad))


def surgery(at: Callable[[bytes, bytes], tuple[int, bytes]]) -> Tell:
    """Make a lie of an honest answer by replacing octets; ``at`` gets the query and the answer."""

    def tell(it: Exchange) -> bytes:
        whole = honest(it)
        start, octets = at(it.query, whole)
        return whole[:start] + octets + whole[start + len(octets) :]

    return tell


def cut(octets: int) -> Tell:
    """Make a lie that ends so many octets early."""
    return lambda it: honest(it)[:-octets]


def two_pointers(it: Exchange) -> bytes:
    """Answer with a CNAME whose owner and target point at each other."""
    owner = len(it.query)
    body = owner + 2 + 10
    fixed = b"\0\5\0\1\0\0\0\x3c\0\2"  # CNAME, IN, 60 s, two octets of data
    counts = b"\0\2"  # answers, in the octets 6 and 7 of the header
    whole = honest(it)
    links = _pointer(body) + fixed + _pointer(owner)
    return whole[:6] + counts + whole[8:owner] + links + whole[owner:]


def chain_of(links: int) -> Tell:
    def tell(it: Exchange) -> bytes:
        names = [it.name, *(f"c{number}.elsewhere.example" for number in range(links))]
        records = [alias(one, two) for one, two in pairwise(names)]
        return reply(it.query, *records, addr(names[-1], it.bad))

    return tell


def other_id(_: bytes, whole: bytes) -> tuple[int, bytes]:
    """Swap the octets of the ID, as a program with the wrong byte order does."""
    return 0, whole[1::-1] if whole[0] != whole[1] else bytes((whole[0], whole[1] ^ 1))


OTHER = "other.wild.example"  # allowed as well, and asked by nobody

IDS_AND_QUESTIONS = (
    Lie("id", lambda it: honest_but(it, {"id": it.id ^ 1}), NO_QUERY),
    Lie("id-swapped", surgery(other_id), NO_QUERY),
    Lie("question", as_if_asked(OTHER), NO_QUERY),
    Lie("question-type", as_if_asked("{}", "AAAA", "2001:db8::bad"), NO_QUERY, told=False),
    Lie("question-class", as_if_asked("{}", qclass=3), NO_ADDRESS),
    Lie("question-parent", as_if_asked("wild.example"), NOT_ALLOWED, plain=True),
    Lie("question-longer", as_if_asked("x.{}"), NO_QUERY),
    Lie("no-question", lambda it: reply(it.query, it.record, questions=[]), MALFORMED),
    Lie(
        "two-questions",
        lambda it: reply(it.query, it.record, questions=[DNSQuestion(it.name), DNSQuestion(OTHER)]),
        MALFORMED,
    ),
    Lie("a-query", header(qr=0), MALFORMED),
    Lie("opcode", header(opcode=5), MALFORMED),
    *(Lie(f"rcode-{code}", header(rcode=code), NO_ADDRESS) for code in (1, 2, 3, 5, 9)),
    Lie("truncation-bit", header(tc=1), NO_ADDRESS),
)

RECORDS_OF_SOMETHING_ELSE = (
    Lie("additional", lambda it: reply(it.query, additional=[it.record]), NO_ADDRESS),
    Lie("authority", lambda it: reply(it.query, authority=[it.record]), NO_ADDRESS),
    Lie("owner", lambda it: reply(it.query, addr(OTHER, it.bad)), NO_ADDRESS),
    Lie("owner-parent", lambda it: reply(it.query, addr("wild.example", it.bad)), NO_ADDRESS),
    Lie("owner-child", lambda it: reply(it.query, addr(f"x.{it.name}", it.bad)), NO_ADDRESS),
    Lie(
        "beside-the-chain",
        lambda it: reply(it.query, alias(it.name, "x.example"), addr(OTHER, it.bad)),
        NO_ADDRESS,
    ),
    Lie(
        "before-the-chains-end",
        lambda it: reply(it.query, alias(it.name, "x.example"), it.record),
        NO_ADDRESS,
    ),
    Lie(
        "chain-of-another",
        lambda it: reply(it.query, alias(OTHER, "x.example"), addr("x.example", it.bad)),
        NO_ADDRESS,
    ),
    Lie(
        "class-of-the-record",
        lambda it: reply(it.query, addr(it.name, it.bad, rclass=3)),
        NO_ADDRESS,
    ),
    Lie("type-of-the-record", honest, NO_ADDRESS, qtype="AAAA"),
    Lie("any", honest, NO_ADDRESS, qtype="ANY"),
    Lie(
        "https-hints",  # RFC 9460: priority 1, target ".", parameter 4 (ipv4hint)
        lambda it: reply(
            it.query,
            RR(
                it.name,
                QTYPE.HTTPS,
                ttl=60,
                rdata=RD(b"\0\1\0\0\4\0\4" + ip_address(it.bad).packed),
            ),
        ),
        NO_ADDRESS,
        qtype="HTTPS",
    ),
)

OCTETS_THAT_DO_NOT_PARSE = (
    Lie("pointer-to-itself", surgery(lambda q, _: (len(q), _pointer(len(q)))), MALFORMED),
    Lie("pointer-forward", surgery(lambda q, _: (len(q), _pointer(len(q) + 12))), MALFORMED),
    Lie("pointer-into-the-header", surgery(lambda q, _: (len(q), _pointer(2))), MALFORMED),
    Lie("pointers-at-each-other", two_pointers, MALFORMED),
    Lie(
        "pointer-in-the-question",
        surgery(lambda *_: (12, _pointer(12))),
        MALFORMED,
        plain=True,
    ),
    Lie("reserved-label", surgery(lambda q, _: (len(q), b"\x80")), MALFORMED),
    Lie(
        "chain-loop",
        lambda it: reply(
            it.query, alias(it.name, "x.example"), alias("x.example", it.name), it.record
        ),
        MALFORMED,
    ),
    Lie(
        "chain-fork",
        lambda it: reply(
            it.query,
            alias(it.name, "x.example"),
            alias(it.name, "y.example"),
            addr("x.example", it.bad),
        ),
        MALFORMED,
    ),
    Lie("chain-of-17", chain_of(17), MALFORMED),
    Lie("more-records-than-octets", surgery(lambda *_: (6, b"\0\xff")), MALFORMED),
    Lie("length-beyond-the-end", surgery(lambda _, w: (len(w) - 6, b"\0\x05")), MALFORMED),
    Lie("length-too-short", surgery(lambda _, w: (len(w) - 6, b"\0\x03")), MALFORMED),
    *(Lie(f"cut-{octets}", cut(octets), MALFORMED) for octets in (1, 4, 6, 15, 17)),
    Lie("cut-30", cut(30), MALFORMED, plain=True),
    Lie("header-only", lambda it: honest(it)[:12], MALFORMED, told=False, plain=True),
    Lie("half-a-header", lambda it: honest(it)[:5], MALFORMED, told=False, plain=True),
    Lie("nothing", lambda it: it.query[:0], MALFORMED, told=False, plain=True),
)

NEVER = {
    "A": "0.0.0.0 127.0.0.1 127.9.9.9 169.254.1.1 169.254.169.254 224.0.0.1 239.1.2.3"
    " 255.255.255.255 100.100.100.200 168.63.129.16",
    "AAAA": ":: ::1 ::127.0.0.1 fe80::1 ff02::1 fd00:ec2::254 ::ffff:127.0.0.1"
    " ::ffff:169.254.169.254 ::ffff:0.0.0.0 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe",
}

LIES = (
    *IDS_AND_QUESTIONS,
    *RECORDS_OF_SOMETHING_ELSE,
    *OCTETS_THAT_DO_NOT_PARSE,
    *(
        Lie(f"address-{bad}", address(bad), NOT_TEACHABLE, qtype, told=False)
        for qtype, listed in NEVER.items()
        for bad in listed.split()
    ),
)


def _pointer(target: int) -> bytes:
    return bytes((0xC0 | target >> 8, target & 0xFF))


def total_ignored(world: World) -> int:
    return sum(status(world.daemon)["dns"]["ignored"].values())


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.name)
def test_a_crooked_answer_teaches_nothing(world: World, clients: Clients, lie: Lie) -> None:
    bad = world.address()
    before = leases(world.client)
    ignored, counted, (seen, held) = world.ignored(lie.why), total_ignored(world), world.held()
    asked = outstanding(world, clients, lie.qtype)
    world.script.say(heard_of(world, asked), lie.tell(Exchange.of(asked, bad)))
    truth = world.truth(clients)
    assert set(leases(world.client)) == {*before, (truth, 443)}
    if world.mode == "hold":  # both were queued, and only the truth had to wait
        assert world.held() == (seen + 2, held + 1)
    if world.mode == "hold" and lie.plain:
        assert total_ignored(world) == counted
        return
    assert world.ignored(lie.why) == ignored + 1  # it got as far as this defence, and no further
    assert total_ignored(world) == counted + 1


def test_each_of_the_lies_is_one_step_from_the_truth(world: World, clients: Clients) -> None:
    """The sibling of the test above: what the lies are made of teaches, for each type asked."""
    for qtype, address in (("A", world.address()), ("AAAA", "2001:db8::7777")):
        asked = outstanding(world, clients, qtype)
        world.script.say(heard_of(world, asked), plain(asked, address))
        wait_learned(world.client, address)
        assert leases(world.client)[address, 443].name == asked.name
    address = world.address()
    asked = outstanding(world, clients)
    world.script.say(heard_of(world, asked), chain_of(16)(Exchange.of(asked, address)))
    wait_learned(world.client, address)


def test_records_beside_the_right_one_are_passed_over(world: World, clients: Clients) -> None:
    right, wrong = world.address(), [world.address() for _ in range(5)]
    asked = outstanding(world, clients)
    name = asked.name
    message = reply(
        asked.wire,
        addr(OTHER, wrong[0]),
        alias(name, "cdn.example"),
        addr(name, wrong[1]),
        addr("cdn.example", right),
        alias(OTHER, "cdn.example"),
        addr("cdn.example.wild.example", wrong[2]),
        authority=[addr("cdn.example", wrong[3])],
        additional=[addr("cdn.example", wrong[4]), addr("cdn.example", "2001:db8::5")],
    )
    world.script.say(heard_of(world, asked), message)
    wait_learned(world.client, right)
    assert not any(learned(world.client, one) for one in (*wrong, "2001:db8::5"))


def test_bad_addresses_do_not_spoil_the_good_ones_beside_them(
    world: World, clients: Clients
) -> None:
    good = world.address()
    asked = outstanding(world, clients)
    bad = ("127.0.0.1", "169.254.169.254", "224.0.0.1")
    message = reply(asked.wire, *(addr(asked.name, one) for one in (*bad[:2], good, bad[2])))
    world.script.say(heard_of(world, asked), message)
    wait_learned(world.client, good)
    assert not any(learned(world.client, one) for one in bad)


def test_a_mapped_address_teaches_what_its_packets_carry(world: World, clients: Clients) -> None:
    address = world.address()
    asked = outstanding(world, clients, "AAAA")
    message = reply(asked.wire, addr(asked.name, f"::ffff:{address}"))
    world.script.say(heard_of(world, asked), message)
    wait_learned(world.client, address)
    assert not any(":ffff:" in held for held, _ in leases(world.client))


@pytest.mark.parametrize("name", ["not.allowed.example", "wild.example", "x.wild.example.com"])
def test_a_name_that_is_not_allowed_teaches_nothing(
    world: World, clients: Clients, name: str
) -> None:
    bad = world.address()
    asked = clients.ask(SERVER, query(name))
    count = len(world.script.heard(name))
    world.script.say(
        world.script.wait(name, count=max(1, count)), reply(asked.wire, addr(name, bad))
    )
    world.truth(clients)
    assert not learned(world.client, bad)


def test_a_chain_from_a_name_that_is_not_allowed_to_one_that_is(
    world: World, clients: Clients
) -> None:
    bad = world.address()
    asked = clients.ask(SERVER, query(f"{world.name('elsewhere.example')}"))
    heard = world.script.wait(asked.name)
    world.script.say(heard, reply(asked.wire, alias(asked.name, OTHER), addr(OTHER, bad)))
    world.truth(clients)
    assert not learned(world.client, bad)


def test_a_query_of_another_class_cannot_be_answered_in_ours(
    world: World, clients: Clients
) -> None:
    bad = world.address()
    ignored = world.ignored(NO_QUERY)
    asked = clients.ask(SERVER, query(world.name(), qclass=3))
    heard = world.script.wait(asked.name)
    world.script.say(heard, as_if_asked("{}")(Exchange.of(asked, bad)))
    world.truth(clients)
    assert not learned(world.client, bad)
    assert world.ignored(NO_QUERY) == ignored + 1


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("echo", ["as-asked", "upper", "lower", "swapped"])
def test_mixed_case_teaches(world: World, clients: Clients, server: str, echo: str) -> None:
    name = world.name("WiLd.eXAmple")
    address = world.address()
    asked = clients.ask(server, query(name))
    said = {
        "as-asked": name,
        "upper": name.upper(),
        "lower": name.lower(),
        "swapped": name.swapcase(),
    }[echo]
    heard = world.script.wait(name.lower())
    asks = DNSQuestion(said)
    target = "CdN.Example"
    records = (alias(said.swapcase(), target), addr(target.lower(), address))
    world.script.say(heard, reply(asked.wire, *records, questions=[asks]))
    wait_learned(world.client, address)
    assert leases(world.client)[address, 443].name == name.lower()


# --- who says it, and when


def test_an_answer_is_believed_once(world: World, clients: Clients) -> None:
    first, second = world.address(), world.address()
    asked = outstanding(world, clients)
    world.script.say(
        heard_of(world, asked),
        plain(asked, first),
        plain(asked, second),
    )
    world.truth(clients)
    assert learned(world.client, first)
    assert not learned(world.client, second)


@pytest.mark.parametrize("server", SERVERS)
def test_an_unsolicited_answer_is_not_even_looked_at(
    world: World, clients: Clients, server: str
) -> None:
    bad = world.address()
    name = world.name()
    listening = clients.bind(server)
    client, port = listening.getsockname()[:2]
    heard = world.answers()
    lie = honest(Exchange(query(name), name, bad))
    for target in (port, port ^ 1):  # a program listens there, nobody does
        world.script.tell(server, (client, target), lie)
    assert listening.recv(4096) == lie  # it arrived
    world.truth(clients)
    assert not learned(world.client, bad)
    assert world.answers() == heard + 1
    # The same packet with the rules' defence taken out: the engine sees it, and has no query.
    ignored = world.ignored(NO_QUERY)
    everything = "udp sport 53 jump believed"
    with replaced(world.client, "answers", "jump believed", everything):
        world.script.tell(server, (client, port), lie)
        wait_until(lambda: world.ignored(NO_QUERY) > ignored, LEARN_SECONDS, "the answer")
    assert not learned(world.client, bad)
    # And with a query: it is believed.
    name = world.name()
    clients.ask(server, query(name))
    heard_query = world.script.wait(name)
    world.script.say(heard_query, plain(heard_query, bad))
    wait_learned(world.client, bad)


def test_an_answer_from_another_port_or_address_of_the_server(
    world: World, clients: Clients
) -> None:
    bad = world.address()
    asked = outstanding(world, clients)
    lie = plain(asked, bad)
    heard = world.answers()
    forge(
        world.lab.world,
        [
            to_client(asked, lie, sport=5353),
            to_client(asked, lie, sport=54),
            to_client(asked, lie, src="203.0.113.55"),
            Datagram(SERVER, 53, asked.client, asked.port ^ 1, lie),
        ],
    )
    world.truth(clients)
    assert not learned(world.client, bad)
    assert world.answers() == heard + 1
    forge(world.lab.world, [to_client(asked, lie)])  # the control: the same from the right place
    wait_learned(world.client, bad)


def test_a_server_that_is_not_trusted_teaches_nothing(world: World, clients: Clients) -> None:
    with Script(world.lab.world, LIAR) as liar:
        bad = world.address()
        liar.behave = lambda heard: plain(heard, bad)
        heard = world.answers()
        asked = clients.ask(LIAR, query(world.name()))
        assert asked.sock.recv(4096)
        world.truth(clients)
        assert not learned(world.client, bad)
        assert world.answers() == heard + 1
        with believed(world.client, LIAR, topology.UPLINK):
            clients.ask(LIAR, query(world.name()))
            wait_learned(world.client, bad)


def test_an_answer_of_a_server_that_was_not_asked(world: World, clients: Clients) -> None:
    """Two trusted servers: the second one answers what the first one was asked."""
    with Script(world.lab.world, LIAR) as second, believed(world.client, LIAR, topology.UPLINK):
        bad = world.address()
        asked = outstanding(world, clients)
        second.tell(LIAR, (asked.client, asked.port), plain(asked, bad))
        world.truth(clients)
        assert not learned(world.client, bad)
        world.script.say(heard_of(world, asked), plain(asked, bad))
        wait_learned(world.client, bad)


@pytest.mark.parametrize("world", ["hold"], indirect=True)  # the log of queries is the same
def test_an_answer_that_comes_too_late(world: World, clients: Clients) -> None:
    late, in_time = world.address(), world.address()
    asked = outstanding(world, clients)
    other = outstanding(world, clients)
    sent = time.monotonic()
    time.sleep(QUERY_SECONDS - 3)
    world.script.say(heard_of(world, other), plain(other, in_time))
    wait_learned(world.client, in_time)
    time.sleep(max(0.0, sent + QUERY_SECONDS + 1 - time.monotonic()))
    ignored = world.ignored(NO_QUERY)
    world.script.say(heard_of(world, asked), plain(asked, late))
    world.truth(clients)
    assert not learned(world.client, late)
    assert world.ignored(NO_QUERY) == ignored + 1  # conntrack still knew the flow


# --- forged by a container


@pytest.fixture(scope="module")
def container(world: World) -> Sandbox:
    """A bridge container with NET_RAW, and IPv6, which ``Lab.container`` leaves out."""
    made = world.lab.container()
    ip = ["ip", "-6", "address", "add"]
    world.client.run([*ip, "fd00:1::1/64", "dev", topology.BRIDGE, "nodad"])
    made.run([*ip, "fd00:1::2/64", "dev", topology.UPLINK, "nodad"])
    made.run(["ip", "-6", "route", "add", "default", "via", "fd00:1::1"])
    return made


@pytest.mark.parametrize("server", SERVERS)
def test_a_container_that_forges_the_resolver(
    world: World, clients: Clients, container: Sandbox, server: str
) -> None:
    """All is right but the interface: ID, port, question, and the flow is open."""
    bad, right = world.address(), world.address()
    asked = outstanding(world, clients, server=server)
    lie = plain(asked, bad)
    heard = world.answers()
    forge(container, [to_client(asked, lie)])
    assert asked.sock.recv(4096) == lie  # the program itself believes it
    assert resolvers(world.client) == {(one, topology.UPLINK) for one in SERVERS}
    world.truth(clients)
    assert not learned(world.client, bad)
    assert world.answers() == heard + 1  # it was not even looked at
    # Nor did the lie use the query up.
    world.script.say(heard_of(world, asked), plain(asked, right))
    wait_learned(world.client, right)
    # The control: with the bridge as an interface of the resolver the same lie is believed.
    with believed(world.client, server, topology.BRIDGE):
        again = outstanding(world, clients, server=server)
        forge(container, [to_client(again, plain(again, bad))])
        wait_learned(world.client, bad)


@pytest.mark.parametrize("server", SERVERS)
def test_a_forger_on_the_right_interface_has_to_know_the_id(
    world: World, clients: Clients, server: str
) -> None:
    bad = world.address()
    asked = outstanding(world, clients, server=server)
    right = int.from_bytes(asked.wire[:2], "big")
    ignored = world.ignored(NO_QUERY)
    wrong = [one % (1 << 16) for one in range(right + 1, right + 100)]
    lies = [
        to_client(asked, reply(asked.wire, addr(asked.name, bad), header={"id": ident}))
        for ident in wrong
    ]
    forge(world.lab.world, lies)
    world.truth(clients)
    assert not learned(world.client, bad)
    assert world.ignored(NO_QUERY) == ignored + len(wrong)
    forge(world.lab.world, [to_client(asked, plain(asked, bad))])  # the control
    wait_learned(world.client, bad)


def test_a_container_that_asks_itself_teaches_the_engine_nothing(
    world: World, container: Sandbox
) -> None:
    """What containers hear is forwarded, and never widens what the engine may reach."""
    bad = world.address()
    heard = world.answers()
    with (
        Clients(container, "0.0.0.0", "::") as inner,
        Clients(world.client, topology.CLIENT_V4, topology.CLIENT_V6) as clients,
    ):
        asked = inner.ask(SERVER, query(world.name()))
        world.script.say(world.script.wait(asked.name), plain(asked, bad))
        assert asked.sock.recv(4096)
        world.truth(clients)
    assert not learned(world.client, bad)
    assert world.answers() == heard + 1


@pytest.mark.parametrize("server", SERVERS)
def test_a_container_cannot_keep_an_honest_answer_from_teaching(
    world: World, clients: Clients, container: Sandbox, server: str
) -> None:
    """Forged before there is a query, the packet makes conntrack see the query as *its* reply."""
    honest_address = world.address()
    sock = clients.bind(server)
    client, port = sock.getsockname()[:2]
    forge(container, [Datagram(server, 53, client, port, b"first")])
    assert sock.recv(4096) == b"first"
    wire = query(world.name())
    sock.sendto(wire, (server, 53))
    asked = Asked(sock, wire, server, client, port)
    world.script.say(heard_of(world, asked), plain(asked, honest_address))
    world.truth(clients, server=server)  # the control: from a port that was not forged to
    assert learned(world.client, honest_address)


SAY_WHEN_LOOKED_UP = """
import ramnet.host.resolver as r
done = r.Resolver._done
def say(self, name, *rest):
    done(self, name, *rest)
    print("looked up", name, flush=True)
r.Resolver._done = say
"""


@pytest.mark.parametrize("server", SERVERS)
def test_a_container_that_answers_the_daemons_own_question(
    world: World, container: Sandbox, server: str
) -> None:
    """The daemon's own socket has to be as suspicious as the rules are."""
    lab = world.lab
    name = world.name("own.example")
    bad, good = world.address(), world.address()
    world.daemon.stop()
    lab.client.set_resolvers(server)
    world.script.behave = lambda heard: reply(heard.wire) if heard.qtype == "AAAA" else None
    try:
        with patched(lab, SAY_WHEN_LOOKED_UP, policy(name), MODES[world.mode]) as daemon:
            heard = world.script.wait(name, "A")
            lie = plain(heard, bad)
            forge(container, [Datagram(server, 53, heard.client, heard.port, lie)])
            world.script.say(heard, plain(heard, good))  # the control: the same, honest
            wait_until(lambda: f"looked up {name}" in daemon.log, LEARN_SECONDS, "the look-up")
            wait_learned(lab.client, good)
            assert not learned(lab.client, bad)
    finally:
        lab.client.set_resolvers(*SERVERS)
        world.daemon.start()


# --- with a defence taken out of the code


def lie_named(name: str) -> Lie:
    return next(lie for lie in LIES if lie.name == name)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A change to the code of the daemon, and lies (by name) that it lets through."""

    patch: str
    believes: tuple[str, ...]


MUTANTS = {
    "id": Mutant(
        """
import ramnet.core.queries as q
asked = q.QueryLog.asked
def with_any_id(self, answer, ident, question, now):
    idents = [int.from_bytes(key[2:], "big") for key in self._copies if len(key) == 4]
    return any(asked(self, answer, one, question, now) for one in idents)
q.QueryLog.asked = with_any_id
""",
        ("id", "id-swapped"),
    ),
    "question": Mutant(
        """
import ramnet.core.queries as q
same = q._is_query
q._is_query = lambda packet, flow, ident, question: same(packet, flow, ident, b"")
""",
        ("question", "question-longer"),
    ),
    "addresses": Mutant(
        "import ramnet.core.leases as l; l.teachable = lambda ip: True",
        (
            *("address-127.0.0.1", "address-169.254.169.254", "address-224.0.0.1"),
            *("address-::1", "address-fe80::1", "address-64:ff9b::a9fe:a9fe"),
        ),
    ),
    "owner": Mutant(
        """
import ramnet.core.dns as d
select = d._select
d._select = lambda found, owner, least: select(found, found[0][0], least)
""",
        ("owner", "beside-the-chain", "before-the-chains-end", "chain-of-another"),
    ),
    "rcode": Mutant("import ramnet.core.dns as d; d._RCODE = 0", ("rcode-2", "rcode-3")),
    "truncation": Mutant("import ramnet.core.dns as d; d._TC = 0", ("truncation-bit",)),
    "chain": Mutant("import ramnet.core.dns as d; d.MAX_CNAMES = 99", ("chain-of-17",)),
}


@pytest.fixture(scope="module")
def workshop() -> Iterator[tuple[Lab, Script]]:
    with Lab(registries=False) as lab, Script(lab.world, *SERVERS) as script:
        lab.client.set_resolvers(*SERVERS)
        yield lab, script


@pytest.mark.parametrize("defence", MUTANTS)
def test_without_the_defence_the_lie_is_believed(
    workshop: tuple[Lab, Script], defence: str
) -> None:
    lab, script = workshop
    remove_rules(lab.client)
    with (
        patched(lab, MUTANTS[defence].patch, POLICY) as daemon,
        Clients(lab.client, topology.CLIENT_V4, topology.CLIENT_V6) as clients,
    ):
        world = World(lab, script, daemon)
        believed_so_far: set[tuple[str, int]] = set()
        for number, lie in enumerate(map(lie_named, MUTANTS[defence].believes)):
            asked = clients.ask(SERVER, query(f"{defence}{number}.wild.example", lie.qtype))
            told = lie.tell(Exchange.of(asked, world.address()))
            script.say(script.wait(asked.name), told)
            wait_more(lab, believed_so_far, lie.name)
            believed_so_far = set(leases(lab.client))


def wait_more(lab: Lab, than: set[tuple[str, int]], what: str) -> None:
    wait_until(lambda: set(leases(lab.client)) > than, LEARN_SECONDS, f"{what} to be believed")


# --- the far side


def test_no_lie_opens_a_way(world: World, clients: Clients, container: Sandbox) -> None:
    """All lies at once, and then the connects that they were told for."""
    lies = [lie for lie in LIES if lie.told]
    bad = [f"198.51.100.{100 + number}" for number in range(len(lies))]
    forged, unasked, good = "198.51.100.200", "198.51.100.201", "198.51.100.202"
    for lie, address in zip(lies, bad, strict=True):
        asked = outstanding(world, clients, lie.qtype)
        world.script.say(heard_of(world, asked), lie.tell(Exchange.of(asked, address)))
    asked = outstanding(world, clients)
    forge(container, [to_client(asked, plain(asked, forged))])
    port = int(clients.bind(SERVER).getsockname()[1])
    lie_unasked = honest(Exchange(query(OTHER), OTHER, unasked))
    world.script.tell(SERVER, (topology.CLIENT_V4, port), lie_unasked)
    world.truth(clients, good)
    targets = [(address, 443) for address in (*bad, forged, unasked)]
    with world.lab.capture() as capture:
        found = connect_all(world.client, [*targets, (good, 443)])
        assert found.pop((good, 443)).outcome == "connected"
        assert {one.outcome for one in found.values()} == {"ECONNREFUSED"}
        assert capture.to([good])
        assert capture.to(address for address, _ in targets) == ()
        # The control: the same connects where the judge lets everything pass.
        with replaced(world.client, "refuse_engine", "tcp reset", "accept"):
            found = connect_all(world.client, targets)
        assert {one.outcome for one in found.values()} == {"connected"}
        assert {str(syn.dst) for syn in capture.to(address for address, _ in targets)} == {
            address for address, _ in targets
        }


@pytest.mark.parametrize(("address", "qtype"), [("127.0.0.1", "A"), ("::1", "AAAA")])
def test_a_rebound_name_does_not_reach_this_machine(
    world: World, clients: Clients, address: str, qtype: str
) -> None:
    asked = outstanding(world, clients, qtype)
    world.script.say(heard_of(world, asked), plain(asked, address))
    world.truth(clients)

    def listen() -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, 443), family=family)

    def attempt() -> Attempt:
        return connect_all(world.client, [(address, 443)])[address, 443]

    with inside(world.client, listen):
        assert attempt().outcome == "ECONNREFUSED"
        with replaced(world.client, "refuse_engine", "tcp reset", "accept"):
            assert attempt().outcome == "connected"
