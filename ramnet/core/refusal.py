"""What becomes of a refused connection: it is recorded, then answered as the policy says.

``notice``: the connection is led to a responder on this machine, which says why there is nothing
else. Only where the machine itself begins the connection: what is forwarded is judged behind the
place where its destination could be changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ramnet.core.policy import Mode, OnDeny, Policy
from ramnet.core.ruleset import Chain, Hook, Rule, Set
from ramnet.core.terms import NOTICE, REFUSALS_GROUP, REFUSED, SYN, Settings, TrafficClass

# Behind the NAT of what leaves (-100): where a marked packet goes to is settled.
_BEHIND_NAT = -99
# Of all NAT chains at a hook the one with the lowest priority is asked first: before Docker's.
_FIRST_NAT = -150
# Copies of refused packets, for the record. More than these are only counted.
COPIES_A_SECOND = 100
# As far as ports are: IPv6 with options, and TCP.
_COPY_BYTES = 128
_LOOPBACK = (("ip", "127.0.0.1"), ("ip6", "::1"))
# Where there is a responder for one family only.
_FAMILY: dict[tuple[int, ...], str] = {
    (4,): "meta nfproto ipv4 ",
    (6,): "meta nfproto ipv6 ",
}
# Of each class. What the responder can do, and a thousand clients at once; the rest is reset.
NOTICES_A_SECOND = 200
NOTICES_AT_ONCE = 1_500


@dataclass(frozen=True, slots=True)
class Refusal:
    """How each class is refused; with ``audit`` nobody is, and it is only recorded."""

    engine: OnDeny = OnDeny.REJECT
    host: OnDeny = OnDeny.REJECT
    containers: OnDeny = OnDeny.REJECT
    audit: bool = False

    def of(self, who: TrafficClass) -> OnDeny:
        """Return how one class is refused."""
        found: OnDeny = getattr(self, who)
        return found

    @property
    def notices(self) -> bool:
        """Whether anybody is led to the responder."""
        return not self.audit and OnDeny.NOTICE in (self.engine, self.host)

    @property
    def leads_host(self) -> bool:
        """Whether programs of the host are."""
        return not self.audit and self.host is OnDeny.NOTICE


REJECTED = Refusal()


def refusal_for(policy: Policy | None, settings: Settings) -> Refusal:
    """Decide how refusals look: as the policy says, as far as this machine can.

    Without a policy they are explained as well.
    """
    engine = host = OnDeny.NOTICE
    containers, audit = OnDeny.REJECT, False
    if policy is not None:
        wanted = policy.enforcement
        engine, host, containers = (wanted.on_deny.of(who) for who in TrafficClass)
        audit = wanted.mode is Mode.AUDIT
    if settings.notice is None:
        engine, host = (OnDeny.REJECT if one is OnDeny.NOTICE else one for one in (engine, host))
    return Refusal(engine, host, containers, audit)


def refuse(who: TrafficClass) -> str:
    """Name the chain that refuses what this class sends."""
    return f"refuse_{who}"


def refuse_chain(who: TrafficClass, refusal: Refusal, settings: Settings) -> Chain:
    """Make the chain that records what is refused to a class, and refuses it."""
    rules = [*_recorded(who, refusal)]
    how = refusal.of(who)
    if refusal.audit:
        rules.append(_ONLY_RECORDED)
    elif how is OnDeny.DROP:
        rules.append(Rule("drop"))
    else:
        if how is OnDeny.NOTICE:
            bit = settings.mark_notice
            family = _FAMILY.get(settings.notice_families, "")
            rules.append(
                Rule(
                    f"{family}meta l4proto tcp meta l4proto @{NOTICE}"
                    f" limit rate {NOTICES_A_SECOND}/second burst {NOTICES_AT_ONCE} packets"
                    f" meta mark set meta mark or {bit:#010x} accept"
                )
            )
        rules += [Rule("meta l4proto tcp reject with tcp reset"), Rule("reject")]
    return Chain(refuse(who), tuple(rules))


def edge_refuse_chain(refusal: Refusal) -> Chain:
    """Make the chain that refuses at the egress of an uplink, where the kernel can only drop."""
    last = _ONLY_RECORDED if refusal.audit else Rule("drop")
    return Chain(
        refuse(TrafficClass.CONTAINERS), (*_recorded(TrafficClass.CONTAINERS, refusal), last)
    )


_ONLY_RECORDED = Rule("accept", "audit: it is only recorded")


def _recorded(who: TrafficClass, refusal: Refusal) -> tuple[Rule, ...]:
    verdict = "would-deny" if refusal.audit else "denied"
    copy = (
        f"limit rate {COPIES_A_SECOND}/second burst {2 * COPIES_A_SECOND} packets"
        f' log prefix "{verdict} {who}" group {REFUSALS_GROUP} snaplen {_COPY_BYTES}'
    )
    return Rule(copy), Rule(f"counter name {REFUSED}")


def notice_sets(refusal: Refusal) -> Iterator[Set]:
    """Make the set that is filled while the responder gives signs of life."""
    if refusal.notices:
        yield Set(NOTICE, "inet_proto", ("timeout",), learned=True)


def unmarked(refusal: Refusal, settings: Settings) -> Iterator[Rule]:
    """Take our bit off what somebody else marked: only what is refused is led anywhere."""
    bit = settings.mark_notice
    if refusal.notices:
        yield Rule(f"meta mark and {bit:#010x} == {bit:#010x} meta mark set {_without(bit)}")


def _without(bit: int) -> str:
    return f"meta mark and {~bit & 0xFFFF_FFFF:#010x}"


def notice_chains(refusal: Refusal, settings: Settings) -> Iterator[Chain]:
    """Make the chains that lead marked connections to the responder, and nowhere else.

    Whatever else has changed their destination, or kept ours from being changed: they are refused.
    And only a socket of root's may answer there, or begin anything: an unprivileged program that
    got hold of the port could lead the connection on to where it was refused. Without a socket (SYN
    cookies) nobody can tell, so that is dropped as well. Nobody else may fill the responder's line.

    The chain of NAT stays where nobody is led any more: a kernel without one forgets how it
    translates connections that stand, and they would go on to where they were refused.
    """
    if settings.notice is None:
        return
    if not refusal.notices:
        yield Chain("lead", (), Hook.OUTPUT, _FIRST_NAT, "nat")
        return
    port, bit = settings.notice, settings.mark_notice
    marked = f"meta mark and {bit:#010x} == {bit:#010x}"
    lead = Rule(f"{marked} meta l4proto tcp redirect to :{port}")
    yield Chain("lead", (lead,), Hook.OUTPUT, _FIRST_NAT, "nat")
    there = tuple(
        Rule(
            f"ct status dnat {ip} daddr {address} tcp dport {port}"
            f" meta mark set {_without(bit)} accept"
        )
        for ip, address in _LOOPBACK
    )
    direct = tuple(
        Rule(
            f"{ip} daddr {address} tcp dport {port} {SYN} ct status & dnat != dnat"
            " reject with tcp reset",
            "the responder is for who is led to it",
        )
        for ip, address in _LOOPBACK
    )
    answers = tuple(
        Rule(
            f"{ip} saddr {address} tcp sport {port} tcp flags & syn == syn goto answered",
            "a SYN as well: both ends may begin (RFC 9293)",
        )
        for ip, address in _LOOPBACK
    )
    astray = tuple(
        Rule(f"oif != lo {ip} daddr {address} tcp dport {port} ct status dnat drop")
        for ip, address in _LOOPBACK
    )
    yield Chain("led", (*there, Rule("meta l4proto tcp reject with tcp reset"), Rule("drop")))
    yield Chain("answered", (Rule("meta skuid 0 accept"), Rule("drop")))
    behind = (
        Rule("meta l4proto != tcp accept"),
        Rule(f"{marked} goto led"),
        *answers,
        *direct,
    )
    yield Chain("noticed", behind, Hook.OUTPUT, _BEHIND_NAT)
    # A socket may be bound to a device.
    yield Chain("astray", astray, Hook.POSTROUTING, _BEHIND_NAT)
