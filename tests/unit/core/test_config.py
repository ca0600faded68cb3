from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from pydantic import ValidationError

from ramnet.core.config import Config, DnsMode, HostMode, Limits, ScopeMode, Weak, parse_config
from ramnet.errors import Fault, PolicyError

DESIGNED = """\
[scope]
mode = "auto"                    # auto | cgroup | mark | uid | netns
cgroups = ["ramnetengines.slice"]    # cgroup v2 paths, relative to the cgroup2 mount
uids = [0]                       # users that run engines, for mode "uid"
weak = "catalog"                 # catalog | strict | refuse
host = "auto"                    # auto | catalog | off: programs that are no engines

[dns]
mode = "auto"                    # auto | hold | observe
servers = []                     # pins the trusted resolvers

[limits]                         # named limits, each with a documented default

[mark]
ct_dns = 0x01000000
ct_host = 0x04000000
engine = 0x02000000
"""


def faults_of(text: str) -> tuple[Fault, ...]:
    with pytest.raises(PolicyError) as caught:
        parse_config(text, source="ramnet.toml")
    return caught.value.faults


def only_fault(text: str) -> Fault:
    (fault,) = faults_of(text)
    return fault


@pytest.mark.parametrize("text", ["", "# nothing\n", DESIGNED, "x-team = 'infra'"])
def test_defaults(text: str) -> None:
    config = parse_config(text, source="ramnet.toml")
    assert config == Config()
    assert config.limits.model_dump() == {
        "leases_total": 65536,
        "leases_per_name": 1024,
        "pending_queries": 16384,
        "resolve_concurrency": 16,
        "warm_names": 10000,
        "control_clients": 32,
        "lease_min_seconds": 300,
        "lease_max_seconds": 86400,
        "lease_grace_seconds": 60,
    }
    assert config.mark.model_dump() == {
        "ct_dns": 0x0100_0000,
        "ct_host": 0x0400_0000,
        "engine": 0x0200_0000,
        "notice": 0x0800_0000,
    }
    assert (config.scope.uids, config.scope.host) == ((0,), HostMode.AUTO)


def test_every_key_is_read() -> None:
    config = parse_config(
        """
        [scope]
        mode = "netns"
        cgroups = ["a.slice", "b.slice/c.scope"]
        uids = [0, 1000, 4294967294]
        weak = "strict"
        host = "off"
        [dns]
        mode = "observe"
        servers = ["10.0.0.53", "127.0.0.53", "2001:db8::53", "fe80::1"]
        [limits]
        leases_total = 3000
        warm_names = 0
        [mark]
        ct_dns = 0x80000000
        ct_host = 0x1
        engine = 0x2
        """,
        source="ramnet.toml",
    )
    assert config.scope.mode is ScopeMode.NETNS
    assert config.scope.cgroups == ("a.slice", "b.slice/c.scope")
    assert config.scope.uids == (0, 1000, (1 << 32) - 2)
    assert config.scope.weak is Weak.STRICT
    assert config.scope.host is HostMode.OFF
    assert config.dns.mode is DnsMode.OBSERVE
    assert config.dns.servers[1:3] == (ip_address("127.0.0.53"), ip_address("2001:db8::53"))
    assert config.limits == Limits(leases_total=3000, warm_names=0)
    assert (config.mark.ct_dns, config.mark.ct_host, config.mark.engine) == (1 << 31, 1, 2)
    assert config == parse_config(config.model_dump_json(), source="ramnet.json")


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Config().mark.ct_dns = 2  # type: ignore[misc]  # that is the test


@pytest.mark.parametrize("name", Limits.model_fields)
@pytest.mark.parametrize("value", ["true", "-1", "1.0", '"1"', "1_000_000_000", "0x" + "f" * 6000])
def test_limits_are_whole_numbers_within_bounds(name: str, value: str) -> None:
    fault = only_fault(f"[limits]\n{name} = {value}")
    assert (fault.place, fault.line) == (f"limits.{name}", 2)
    assert fault.message.startswith("must be ")


@pytest.mark.parametrize("name", ["ct_dns", "ct_host", "engine"])
@pytest.mark.parametrize("value", ["0", "3", "-1", "0x1_0000_0000", "true", "1.0", "'1'"])
def test_a_mark_is_a_single_bit_of_32(name: str, value: str) -> None:
    fault = only_fault(f"[mark]\n{name} = {value}")
    assert (fault.place, fault.line) == (f"mark.{name}", 2)
    assert fault.message.startswith(("must be a single bit", "must be a whole number"))


@pytest.mark.parametrize(
    ("text", "where", "message", "hint"),
    [
        ("scope.mode = 'cgrp'", "scope.mode", "'cgrp' is not one of auto, cgroup", "mean cgroup?"),
        ("scope.weak = 'off'", "scope.weak", "'off' is not one of catalog, strict", ""),
        ("dns.mode = 'held'", "dns.mode", "'held' is not one of", "did you mean hold?"),
        ("dns.server = []", "dns.server", "unknown key", "did you mean servers?"),
        ("servers = []", "servers", "unknown key", "it belongs in [dns]"),
        ("limits.leases_totl = 1", "limits.leases_totl", "unknown key", "leases_total?"),
        ("scope = 1", "scope", "must be a table, not a number", ""),
        ("scope.cgroups = []", "scope.cgroups", "is an empty list", "leave the key out"),
        ("scope.uids = []", "scope.uids", "is an empty list", "leave the key out"),
        ("scope.uids = [1, 1]", "scope.uids", "lists '1' twice", "keep one"),
        (f"scope.uids = {[*range(17)]}", "scope.uids", "lists 17 items; the limit is 16", ""),
        ("scope.uids = [-1]", "scope.uids[0]", "must be from 0 to 4294967294", ""),
        ("scope.uids = [4294967295]", "scope.uids[0]", "must be from 0 to 4294967294", ""),
        ("scope.uids = ['root']", "scope.uids[0]", "must be a whole number", ""),
        ("scope.host = 'strict'", "scope.host", "'strict' is not one of auto, catalog, off", ""),
        (
            "mark = {ct_dns = 4, ct_host = 4}",
            "mark",
            "two of the marks are the same bit",
            "a bit of its own",
        ),
        (
            "mark.ct_host = 0x01000000",
            "mark",
            "two of the marks are the same bit",
            "a bit of its own",
        ),
        ("scope.cgroups = 'a'", "scope.cgroups", "must be a list, not a string", "[...]"),
        ("scope.cgroups = ['/a']", "scope.cgroups[0]", "'/a' is absolute", "without a /"),
        ("scope.cgroups = ['']", "scope.cgroups[0]", "'' is not a path of a cgroup", "a.slice"),
        ("scope.cgroups = ['a/../b']", "scope.cgroups[0]", "'a/../b' is not a path", ""),
        ("scope.cgroups = ['a//b']", "scope.cgroups[0]", "'a//b' is not a path", ""),
        (f"scope.cgroups = ['{'a' * 256}']", "scope.cgroups[0]", "'aaa", "a.slice"),
        (f"scope.cgroups = ['{'a/' * 512}a']", "scope.cgroups[0]", "'a/a", ""),
        (r'scope.cgroups = ["a\n"]', "scope.cgroups[0]", r"'a\n' is too long or not", ""),
        ("scope.cgroups = ['a', 'a']", "scope.cgroups", "lists 'a' twice", "keep one"),
        ("dns.servers = ['::1', '0::1']", "dns.servers", "lists '::1' twice", "keep one"),
        (
            f"dns.servers = {['10.0.0.1'] * 17}",
            "dns.servers",
            "lists 17 items; the limit is 16",
            "",
        ),
        ("dns.servers = ['dns.example']", "dns.servers[0]", "'dns.example' is not an IP", "53"),
        ("dns.servers = ['10.0.0.1:53']", "dns.servers[0]", "'10.0.0.1:53' is not an IP", "53"),
        ("dns.servers = ['fe80::1%eth0']", "dns.servers[0]", "'fe80::1%eth0' names an", "the %"),
        ("dns.servers = ['0.0.0.0']", "dns.servers[0]", "0.0.0.0 is not the address of one", ""),
        ("dns.servers = ['ff02::1']", "dns.servers[0]", "ff02::1 is not the address of one", ""),
        ("dns.servers = [1]", "dns.servers[0]", "must be a string, not a number", "quotes"),
        (
            "limits = {lease_min_seconds = 301, lease_max_seconds = 300}",
            "limits",
            "lease_min_seconds is more than lease_max_seconds",
            "raise the latter",
        ),
        (
            "limits = {leases_per_name = 300, leases_total = 299}",
            "limits",
            "leases_per_name is more than leases_total",
            "raise the latter",
        ),
    ],
)
def test_faults(text: str, where: str, message: str, hint: str) -> None:
    fault = only_fault(text)
    assert (fault.place, fault.line) == (where, 1)
    assert fault.message.startswith(message)
    assert hint in fault.hint


def test_all_faults_at_once() -> None:
    text = "a = 1\n[scope]\nmode = 1\n[dns]\nservers = ['x',\n'y']\n[mark]\nct_dns = 3\n"
    assert [(fault.place, fault.line) for fault in faults_of(text)] == [
        ("a", 1),
        ("scope.mode", 3),
        ("dns.servers[0]", 5),
        ("dns.servers[1]", 6),
        ("mark.ct_dns", 8),
    ]


@pytest.mark.parametrize(("key", "value"), [("leases_total", True), ("lease_min_seconds", 90000)])
def test_the_rules_hold_for_code_too(key: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        Limits(**{key: value})
