"""The lease table against a kernel that keeps time, and against its promises."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ramnet.core.addresses import IPAddress
from ramnet.core.leases import Key, LeaseLimits, LeaseTable, Refusal
from ramnet.core.names import HostName

LIMITS = LeaseLimits(ttl_min=30, ttl_max=120, grace=10, per_name=4, names_per_lease=2, total=8)
NAMES = st.sampled_from([HostName(f"{letter}.example") for letter in "abcde"])
GOOD: list[IPAddress] = [IPv4Address("192.0.2.0") + n for n in range(8)]
BAD: list[IPAddress] = [IPv4Address("127.0.0.1"), IPv6Address("fe80::1")]
ADDRESSES = st.lists(st.sampled_from(GOOD + BAD), max_size=6)
PORTS = st.lists(st.sampled_from([443, 5000]), max_size=2)


class LeasesAndKernel(RuleBasedStateMachine):
    """``kernel`` holds the elements that the table asked for, by the time they run out.

    ``promised`` is what clients may count on: who heard an answer may use it for all of its TTL.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.leases = LeaseTable(LIMITS)
        self.kernel: dict[Key, float] = {}
        self.promised: dict[tuple[HostName, Key], float] = {}

    def delete(self, dropped: tuple[Key, ...]) -> None:
        for key in dropped:
            del self.kernel[key]  # each was there
        self.promised = {
            pair: until for pair, until in self.promised.items() if pair[1] not in dropped
        }

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.kernel = {key: end for key, end in self.kernel.items() if end > self.now}
        self.promised = {pair: end for pair, end in self.promised.items() if end > self.now}

    @rule(name=NAMES, ips=ADDRESSES, ttl=st.integers(0, 200), ports=PORTS)
    def learn(self, name: HostName, ips: list[IPAddress], ttl: int, ports: list[int]) -> None:
        learned = self.leases.learn(name, ips, ttl, ports, self.now)
        written = {(write.ip, write.port) for write in learned.write}
        assert not written & set(learned.drop)
        pairs = {(ip, port) for ip in ips for port in ports}
        assert written <= pairs
        assert len(written) + learned.known + len(learned.ignored) == len(pairs)
        self.delete(learned.drop)
        for write in learned.write:
            self.kernel[write.ip, write.port] = self.now + write.timeout
        refused = {ip for ip, _ in learned.ignored}
        for key in pairs:
            if key[0] not in refused:
                self.promised[name, key] = self.now + min(ttl, LIMITS.ttl_max)
        for ip, reason in learned.ignored:
            assert (reason is Refusal.NOT_TEACHABLE) == (ip in BAD)

    @rule(keep=st.sets(NAMES))
    def reload(self, keep: set[HostName]) -> None:
        self.delete(self.leases.retain(lambda name, _ip, _port: name in keep, self.now))
        for lease in self.leases.snapshot(self.now):
            assert lease.names
            assert set(lease.names) <= keep

    @rule()
    def restart(self) -> None:
        after = LeaseTable(LIMITS)
        for lease in self.leases.snapshot(self.now):
            for name in lease.names or (None,):
                assert after.restore(lease.ip, lease.port, name, lease.remaining, self.now)
        # Adding `remaining` to the clock may round: take the kernel's ends from the new table.
        self.leases = after
        self.kernel = {
            (lease.ip, lease.port): self.now + lease.remaining for lease in after.snapshot(self.now)
        }

    @rule(ip=st.sampled_from(GOOD), port=st.sampled_from([443, 5000]))
    def kernel_refuses(self, ip: IPAddress, port: int) -> None:
        assert self.leases.discard(ip, port) == ((ip, port) in self.kernel)
        if (ip, port) in self.kernel:
            self.delete(((ip, port),))

    @invariant()
    def table_says_what_the_kernel_holds(self) -> None:
        seen = {
            (lease.ip, lease.port): self.now + lease.remaining
            for lease in self.leases.snapshot(self.now)
        }
        assert seen.keys() == self.kernel.keys()
        assert all(abs(seen[key] - end) < 1e-6 for key, end in self.kernel.items())
        assert len(self.leases) == len(seen) <= LIMITS.total

    @invariant()
    def every_promise_is_kept(self) -> None:
        for (_, key), until in self.promised.items():
            assert self.kernel[key] >= until

    @invariant()
    def names_and_addresses_tell_the_same(self) -> None:
        by_ip = {
            (name, (lease.ip, lease.port))
            for lease in self.leases.snapshot(self.now)
            for name in lease.names
        }
        names = {name for name, _ in by_ip}
        by_name = [
            (name, (lease.ip, lease.port))
            for name in names
            for lease in self.leases.by_name(name, self.now)
        ]
        assert len(by_name) == len(set(by_name)) <= LIMITS.total
        assert set(by_name) == by_ip
        assert all(sum(one == name for one, _ in by_name) <= LIMITS.per_name for name in names)
        for lease in self.leases.snapshot(self.now):
            assert len(lease.names) <= LIMITS.names_per_lease


TestLeasesAndKernel = LeasesAndKernel.TestCase
