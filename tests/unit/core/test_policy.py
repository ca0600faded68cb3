from __future__ import annotations

import json
import re
import tomllib
from datetime import date
from ipaddress import ip_network
from typing import Any

import pytest
from pydantic import ValidationError

from ramnet.core.names import parse_address, parse_pattern
from ramnet.core.policy import (
    MAX_ORGANIZATION,
    ClassMode,
    DestinationEntry,
    Enforcement,
    Mode,
    OnDeny,
    OnDenyEach,
    Policy,
    RegistryEntry,
    canonical_policy,
    initial_policy_text,
    parse_policy,
    policy_digest,
)
from ramnet.errors import Fault, PolicyError

HEAD = 'version = 1\norganization = "acme"\n'
DESIGNED = """\
version = 1
organization = "acme"
min_ramnet = "0.1"

[support]
contact = "it@acme.example"      # shown in refusals

[[registry]]
address = "docker.io"            # the catalogue adds auth and blob hosts
nickname = "Docker Hub"

[[registry]]
address = "registry.corp.example:5000"
nickname = "Corp"
extra_hosts = ["blobs.corp.example", "*.mirror.corp.example"]
networks = ["10.20.0.5", "10.30.0.0/24"] # reached without DNS
expires = 2027-01-31
reason = "trial"

[[destination]]                  # not a registry; engine class only
address = "github.com"
ports = [443]
reason = "git build contexts"

[enforcement]                    # optional; defaults shown
mode = "enforce"
engine = "strict"
containers = "catalog"
on_deny = "notice"
"""


def read(text: str | bytes, source: str = "policy.toml", version: str = "0.1.0") -> Policy:
    return parse_policy(text, source=source, ramnet_version=version)


def faults_of(text: str | bytes, source: str = "policy.toml") -> tuple[Fault, ...]:
    with pytest.raises(PolicyError) as caught:
        read(text, source)
    return caught.value.faults


def only_fault(text: str | bytes, source: str = "policy.toml") -> Fault:
    (fault,) = faults_of(text, source)
    return fault


def test_the_designed_file_is_accepted_whole() -> None:
    policy = read(DESIGNED)
    assert policy.organization == "acme"
    assert policy.support.contact == "it@acme.example"
    assert policy.registry == (
        RegistryEntry(parse_address("docker.io"), "Docker Hub"),
        RegistryEntry(
            address=parse_address("registry.corp.example:5000"),
            nickname="Corp",
            extra_hosts=(
                parse_pattern("blobs.corp.example"),
                parse_pattern("*.mirror.corp.example"),
            ),
            networks=(ip_network("10.20.0.5"), ip_network("10.30.0.0/24")),
            expires=date(2027, 1, 31),
            reason="trial",
        ),
    )
    assert policy.destination == (
        DestinationEntry(parse_address("github.com"), (443,), None, "git build contexts"),
    )
    assert policy.enforcement == Enforcement()


def test_the_least_policy() -> None:
    policy = read(HEAD)
    assert (policy.registry, policy.destination, policy.min_ramnet) == ((), (), None)
    wanted = policy.enforcement
    assert (wanted.mode, wanted.engine) == (Mode.ENFORCE, ClassMode.STRICT)
    assert (wanted.containers, wanted.on_deny) == (ClassMode.CATALOG, OnDenyEach())


def test_a_policy_cannot_be_changed() -> None:
    policy = read(HEAD)
    with pytest.raises(ValidationError):
        policy.organization = "other"  # type: ignore[misc]  # that is the test


@pytest.mark.parametrize(
    "address",
    [
        "localhost:5001",
        "localhost:*",
        "10.0.0.1:5000",
        "10.0.0.1:*",
        "2001:db8::1",
        "*.example.com",
    ],
)
def test_addresses(address: str) -> None:
    (entry,) = read(f"{HEAD}[[registry]]\naddress = '{address}'").registry
    assert entry.address == parse_address(address)


@pytest.mark.parametrize("text", ["", "\n \t\n", b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("source", ["policy.toml", "policy.json"])
def test_an_empty_file(text: str | bytes, source: str) -> None:
    fault = only_fault(text, source)
    assert fault == Fault(
        "", None, "the file is empty", "`ramnet policy init` writes a first policy"
    )


@pytest.mark.parametrize(
    ("version", "message", "hint"),
    [
        ("true", "must be the number 1, not a boolean", "write version = 1"),
        ("1.0", "must be the number 1, not a number with a fraction", "write version = 1"),
        ("'1'", "must be the number 1, not a string", "write version = 1"),
        ("2", "is a version of the format that is not known", "this ramnet reads version 1"),
        ("0x" + "f" * 6000, "is a version of the format that is not known", "reads version 1"),
    ],
)
def test_version(version: str, message: str, hint: str) -> None:
    fault = only_fault(f"organization = 'acme'\nversion = {version}")
    assert (fault.place, fault.line, fault.message) == ("version", 2, message)
    assert hint in fault.hint


def test_version_and_organization_are_required() -> None:
    assert [(fault.place, fault.line, fault.message) for fault in faults_of("# empty")] == [
        ("version", None, "is missing"),
        ("organization", None, "is missing"),
    ]


@pytest.mark.parametrize("name", ["a", "A" * MAX_ORGANIZATION, "\u00c6r\u00f8 & S\u00f8n", '"\\{}'])
def test_organizations(name: str) -> None:
    text = json.dumps({"version": 1, "organization": name})
    assert read(text, "policy.json").organization == name
    assert read(initial_policy_text(name)).organization == name


@pytest.mark.parametrize(
    "name",
    ["", " ", "a" * (MAX_ORGANIZATION + 1), "a\nb", "a\x00", "a\x7f", "\u202ea", "\ud800", " a"],
)
def test_organizations_that_would_spoil_a_message(name: str) -> None:
    text = json.dumps({"version": 1, "organization": name})
    fault = only_fault(text, "policy.json")
    assert (fault.place, fault.line) == ("organization", 1)
    with pytest.raises(PolicyError) as caught:
        initial_policy_text(name)
    (same,) = caught.value.faults
    assert (same.message, same.hint) == (fault.message, fault.hint)


@pytest.mark.parametrize(
    ("body", "where", "message", "hint"),
    [
        ("support.contact = ''", "support.contact", "must not be empty", ""),
        (r'support.contact = "a\u001b[2J"', "support.contact", r"holds '\x1b'", "plain line"),
        (f"support.contact = '{'a' * 201}'", "support.contact", "is 201 characters long", ""),
        ("support.contcat = ''", "support.contcat", "unknown key", "did you mean contact?"),
        ("organisation = 'b'", "organisation", "unknown key", "did you mean organization?"),
        ("registries = []", "registries", "unknown key", "did you mean registry?"),
        ("contact = 'b'", "contact", "unknown key", "it belongs in [support]"),
        ("registry = 'docker.io'", "registry", "must be a list, not a string", "[[registry]]"),
        ("[registry]", "registry", "must be a list, not a table", "write [[registry]]"),
        ("[[registry]]", "registry[0].address", "is missing", "add address = ..."),
        ("registry = ['docker.io']", "registry[0]", "must be a table, not a string", ""),
        ("registry = [{address = 5}]", "registry[0].address", "must be a string", "quotes"),
        ("registry = [{address = 'https://a.io'}]", "registry[0].address", "'https", "host"),
        ("registry = [{address = '*.10.0.0.1'}]", "registry[0].address", "'10.0.0.1' is", ""),
        ("registry = [{address = 'a:0'}]", "registry[0].address", "'a:0'", "from 1 to 65535"),
        ("registry = [{address = 'a', reason = 1}]", "registry[0].reason", "must be a str", ""),
        ("destination = [{}]", "destination[0].address", "is missing", "add address = ..."),
        (
            "destination = [{address = 'a', ports = [0, 443]}]",
            "destination[0].ports[0]",
            "must be from 1 to 65535",
            "",
        ),
        (
            "destination = [{address = 'a', ports = [443, true]}]",
            "destination[0].ports[1]",
            "must be a whole number, not a boolean",
            "1 to 65535",
        ),
        (
            "destination = [{address = 'a:22', ports = [443]}]",
            "destination[0]",
            "has a port in its address and a list of ports",
            "keep one of the two",
        ),
        (
            "destination = [{address = 'a:*', ports = [443]}]",
            "destination[0]",
            "has a port in its address and a list of ports",
            "keep one of the two",
        ),
        ("enforcement.mode = 'adit'", "enforcement.mode", "'adit' is not one of", "mean audit?"),
        ("enforcement.engine = 'of'", "enforcement.engine", "'of' is not one of", "mean off?"),
        ("enforcement.on_deny = 1", "enforcement.on_deny", "must be a string", "quotes"),
        ("enforcement.host = 'off'", "enforcement.host", "unknown key", "known keys here: mode"),
    ],
)
def test_faults(body: str, where: str, message: str, hint: str) -> None:
    fault = only_fault(f"{HEAD}{body}")
    assert (fault.place, fault.line) == (where, 3)
    assert fault.message.startswith(message)
    assert hint in fault.hint


@pytest.mark.parametrize(
    ("hosts", "message", "hint"),
    [
        ("10.0.0.1", "'10.0.0.1' ", "list addresses under networks"),
        ("2001:db8::1", "'2001:db8::1' ", "list addresses under networks"),
        ("a.example:5000", "'a.example:5000' ", "port"),
        ("foo.*.com", "'foo.*.com' ", "*.example.com"),
    ],
)
def test_extra_hosts(hosts: str, message: str, hint: str) -> None:
    body = f"[[registry]]\naddress = 'a'\nextra_hosts = ['ok.example',\n'{hosts}']"
    fault = only_fault(f"{HEAD}{body}")
    assert (fault.place, fault.line) == ("registry[0].extra_hosts[1]", 6)
    assert fault.message.startswith(message)
    assert hint in fault.hint


@pytest.mark.parametrize(
    ("network", "message", "hint"),
    [
        ("10.0.0.5/24", "10.0.0.5/24 has bits set behind its prefix", 'write "10.0.0.0/24"'),
        ("2001:db8::1/64", "2001:db8::1/64 has bits set", '"2001:db8::1" for the one'),
        ("0.0.0.0/0", "0.0.0.0/0 allows every address", "the registry's own networks"),
        ("1.2.3.4/0", "1.2.3.4/0 allows every address", "the registry's own networks"),
        ("::/0", "::/0 allows every address", "the registry's own networks"),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.1 covers IPv4-mapped", "as IPv4: 10.0.0.1/32"),
        ("::ffff:0:0/96", "::ffff:0:0/96 covers IPv4-mapped", "as IPv4: 0.0.0.0/0"),
        ("::/8", "::/8 covers IPv4-mapped", "write an IP address or a network"),
        ("10.0.0.0/255.0.0.0", "'10.0.0.0/255.0.0.0' is not a network", "10.30.0.0/24"),
        ("10.0.0.0/33", "'10.0.0.0/33' is not a network", "10.30.0.0/24"),
        ("10.0.0.0/", "'10.0.0.0/' is not a network", "10.30.0.0/24"),
        ("10.0.0.0/\u0663", r"'10.0.0.0/\u0663' is not a network", "10.30.0.0/24"),
        ("fe80::1%eth0", "'fe80::1%eth0' is not a network", "10.30.0.0/24"),
        ("a.example", "'a.example' is not a network", "10.30.0.0/24"),
        ("", "'' is not a network", "10.30.0.0/24"),
    ],
)
def test_networks(network: str, message: str, hint: str) -> None:
    fault = only_fault(f"{HEAD}[[registry]]\naddress = 'a'\nnetworks = ['10.0.0.1', '{network}']")
    assert (fault.place, fault.line) == ("registry[0].networks[1]", 5)
    assert fault.message.startswith(message)
    assert hint in fault.hint


def test_a_number_is_no_network() -> None:
    fault = only_fault(f"{HEAD}registry = [{{address = 'a', networks = [1]}}]")
    assert fault.message == "must be a string, not a number"


def test_regions_and_unverified_hosts_of_a_registry() -> None:
    keys = "regions = ['eu-west-1', 'us-west1', 'westeurope'], unverified_hosts = true"
    policy = read(f"{HEAD}registry = [{{address = 'a', {keys}}}, {{address = 'b'}}]")
    first, second = policy.registry
    assert first.regions == ("eu-west-1", "us-west1", "westeurope")
    assert (first.unverified_hosts, second.unverified_hosts, second.regions) == (True, False, ())
    assert canonical_policy(policy)["registry"] == [
        {"address": "a", "regions": list(first.regions), "unverified_hosts": True},
        {"address": "b"},
    ]
    spelled = read(f"{HEAD}registry = [{{address = 'a', unverified_hosts = false, regions = []}}]")
    assert policy_digest(spelled) == policy_digest(read(f"{HEAD}registry = [{{address = 'a'}}]"))


@pytest.mark.parametrize("region", ["*", "EU-WEST-1", "eu-west", "", "a.b"])
def test_what_is_no_region(region: str) -> None:
    fault = only_fault(f"{HEAD}[[registry]]\naddress = 'a'\nregions = ['eu-west-1', '{region}']")
    assert (fault.place, fault.line) == ("registry[0].regions[1]", 5)
    assert fault.message == f"'{region}' is not the region of a cloud"
    assert "eu-west-1" in fault.hint


@pytest.mark.parametrize("written", ["1", "'true'", "[]"])
def test_unverified_hosts_are_taken_or_not(written: str) -> None:
    fault = only_fault(f"{HEAD}registry = [{{address = 'a', unverified_hosts = {written}}}]")
    assert fault.place == "registry[0].unverified_hosts"
    assert fault.message.startswith("must be true or false, not ")


@pytest.mark.parametrize("written", ["2027-01-31", "'2027-01-31'"])
def test_an_entry_is_in_force_until_its_last_day_ends(written: str) -> None:
    policy = read(f"{HEAD}registry = [{{address='a', expires={written}}}, {{address='b'}}]")
    both = policy.registry
    assert both[0].expires == date(2027, 1, 31)
    assert policy.active(date(2027, 1, 31)) == both
    assert policy.active(date(2027, 2, 1)) == both[1:]


@pytest.mark.parametrize(
    ("written", "what"),
    [
        ("2027-01-31T10:00:00Z", "a date with a time"),
        ("10:00:00", "a time"),
        ("'20270131'", "'20270131'"),
        ("'2027-W05-1'", "'2027-W05-1'"),
        ("'2027-02-30'", "'2027-02-30'"),
        ("'2027-01-31T00:00:00'", "'2027-01-31T00:00:00'"),
        ("1801353600", "a number"),
        ("''", "''"),
    ],
)
def test_what_is_no_date(written: str, what: str) -> None:
    fault = only_fault(f"{HEAD}registry = [{{address = 'a', expires = {written}}}]")
    assert (fault.place, fault.line) == ("registry[0].expires", 3)
    assert fault.message == f"must be a date, not {what}"
    assert "2027-01-31" in fault.hint


def test_the_same_registry_twice_names_the_first_place() -> None:
    body = "\n".join(f"[[registry]]\naddress = '{a}'" for a in ("a.io", "b.io", "A.io.", "a.io"))
    assert faults_of(HEAD + body) == tuple(
        Fault(
            f"registry[{index}].address",
            line,
            "a.io is already listed at registry[0].address, line 4",
            "merge the two",
        )
        for index, line in ((2, 8), (3, 10))
    )


def test_the_same_registry_twice_is_told_beside_other_faults() -> None:
    body = "registry = [{address = 'a'}, 5, {}, {address = 1}, {address = '/'}, {address = 'a'}]"
    assert [fault.place for fault in faults_of(HEAD + body)] == [
        "registry[1]",
        "registry[2].address",
        "registry[3].address",
        "registry[4].address",
        "registry[5].address",
    ]


@pytest.mark.parametrize(
    "addresses",
    [("a.io", "a.io:5000"), ("a.io:1", "a.io:*"), ("a.io", "*.a.io"), ("::1", "127.0.0.1")],
)
def test_different_addresses_are_no_repetition(addresses: tuple[str, str]) -> None:
    body = "\n".join(f"[[registry]]\naddress = '{a}'" for a in addresses)
    assert len(read(HEAD + body).registry) == 2


@pytest.mark.parametrize(
    ("least", "running"),
    [("0.1", "0.1.0"), ("0.1.0.0", "0.1"), ("0.9", "0.10.1"), ("0", "0.1"), ("1", "1.0.dev1")],
)
def test_min_ramnet_that_is_met(least: str, running: str) -> None:
    assert read(f"{HEAD}min_ramnet = '{least}'", version=running).min_ramnet == least


@pytest.mark.parametrize(("least", "running"), [("0.1.1", "0.1.0"), ("0.10", "0.9.9"), ("1", "x")])
def test_min_ramnet_that_is_not_met(least: str, running: str) -> None:
    with pytest.raises(PolicyError) as caught:
        read(f"{HEAD}min_ramnet = '{least}'", version=running)
    assert caught.value.faults == (
        Fault(
            "min_ramnet",
            3,
            f"this policy needs ramnet {least}; this is {running}",
            "upgrade ramnet, or lower min_ramnet",
        ),
    )


@pytest.mark.parametrize("least", ["1.x", "", "1.2.3.4.5", "v1", "1.", "\u0661", "9999999", "1\n"])
def test_min_ramnet_that_is_no_version(least: str) -> None:
    text = json.dumps({"version": 1, "organization": "a", "min_ramnet": least})
    fault = only_fault(text, "policy.json")
    assert fault.place == "min_ramnet"
    assert fault.message.endswith("is not a version of ramnet")


def test_min_ramnet_is_told_beside_other_faults() -> None:
    assert [f.place for f in faults_of(f"{HEAD}min_ramnet = '9'\nnew_key = 1")] == [
        "min_ramnet",
        "new_key",
    ]
    assert only_fault(f"{HEAD}min_ramnet = 9").message == "must be a string, not a number"


def test_every_fault_can_be_read_from_the_error() -> None:
    with pytest.raises(PolicyError) as caught:
        read(f"{HEAD}a = 1\nb = 2", "team.toml")
    assert re.fullmatch(
        r"team\.toml: 2 faults\n  line 3: a: unknown key \(.*\)\n  line 4: b: unknown key \(.*\)",
        str(caught.value),
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("'notice'", OnDenyEach(OnDeny.NOTICE, OnDeny.NOTICE, OnDeny.REJECT)),
        ("'reject'", OnDenyEach(OnDeny.REJECT, OnDeny.REJECT, OnDeny.REJECT)),
        ("'drop'", OnDenyEach(OnDeny.DROP, OnDeny.DROP, OnDeny.DROP)),
        ("{containers = 'drop'}", OnDenyEach(containers=OnDeny.DROP)),
        ("{engine = 'drop', host = 'reject'}", OnDenyEach(OnDeny.DROP, OnDeny.REJECT)),
        ("{}", OnDenyEach()),
    ],
)
def test_how_refusals_are_answered(text: str, found: OnDenyEach) -> None:
    enforcement = read(f"{HEAD}enforcement.on_deny = {text}").enforcement
    assert enforcement.on_deny == found
    again = json.dumps({**tomllib.loads(HEAD), "enforcement": {"on_deny": found.plain}})
    assert read(again, "policy.json").enforcement.on_deny == found


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("'no'", "no answer to a refused connection", "one of notice, reject, drop"),
        ("{engine = 1}", "must be a string", "quotes"),
        ("{engines = 'drop'}", "not a class", "engine, host, containers"),
        ("{containers = 'notice'}", "cannot be led to a notice", "reject"),
    ],
)
def test_wrong_answers_to_refusals(text: str, message: str, hint: str) -> None:
    with pytest.raises(PolicyError) as caught:
        read(f"{HEAD}enforcement.on_deny = {text}")
    (fault,) = caught.value.faults
    assert fault.place == "enforcement.on_deny"
    assert message in fault.message
    assert hint in fault.hint


def shuffled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


def test_the_digest_is_of_the_meaning() -> None:
    digest = policy_digest(read(DESIGNED))
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest)
    data = tomllib.loads(DESIGNED)
    data["registry"][1]["expires"] = "2027-01-31"
    for text in (json.dumps(data), json.dumps(shuffled(data), indent=8)):
        assert policy_digest(read(text, "policy.json")) == digest
    for before, after in (
        ('"docker.io"', '"DOCKER.io."'),
        ("ports = [443]", "ports = [443, 443]"),
        ("[enforcement]", "x-a = 1\n[enforcement]"),
        ('on_deny = "notice"', ""),
        ('"10.20.0.5"', '"10.20.0.5/32"'),
        ("\n", "\r\n"),
    ):
        assert before in DESIGNED
        assert policy_digest(read(DESIGNED.replace(before, after))) == digest


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"acme"', '"acme2"'),
        ('"0.1"', '"0.0"'),
        ("it@", "is@"),
        ("docker.io", "docker.com"),
        ("Docker Hub", "Docker"),
        ("blobs.", "*.blobs."),
        ("10.20.0.5", "10.20.0.6"),
        ("2027-01-31", "2027-01-30"),
        ("trial", "test"),
        ("github.com", "gitlab.com"),
        ("[443]", "[443, 80]"),
        ('"enforce"', '"audit"'),
        ('"strict"', '"off"'),
        ('"catalog"', '"off"'),
        ('"notice"', '"drop"'),
    ],
)
def test_the_digest_covers_every_key(before: str, after: str) -> None:
    assert before in DESIGNED
    assert policy_digest(read(DESIGNED.replace(before, after))) != policy_digest(read(DESIGNED))


def test_the_canonical_form_is_a_policy() -> None:
    policy = read(DESIGNED)
    text = json.dumps(canonical_policy(policy))
    assert read(text, "policy.json") == policy
    assert canonical_policy(read(HEAD)) == {
        "version": 1,
        "organization": "acme",
        "enforcement": {
            "mode": "enforce",
            "engine": "strict",
            "containers": "catalog",
            "on_deny": "notice",
        },
    }


def test_the_initial_policy() -> None:
    text = initial_policy_text("acme")
    policy = read(text)
    assert policy.registry == (RegistryEntry(parse_address("docker.io"), "Docker Hub"),)
    assert policy.enforcement == Enforcement(mode=Mode.AUDIT)
    assert "ramnet policy suggest" in text


def test_the_examples_in_the_initial_policy_are_valid() -> None:
    text = initial_policy_text("acme")
    uncommented = re.sub(r"^# (?=\[|\w+ = )", "", text, flags=re.MULTILINE)
    policy = read(uncommented)
    assert policy.enforcement == Enforcement(mode=Mode.AUDIT)
    assert (len(policy.registry), len(policy.destination)) == (2, 1)
    assert policy.registry[1].expires
    assert policy.support.contact


def test_many_entries() -> None:
    hosts = [f"h{n}.example" for n in range(20_000)]
    registry = [{"address": host} for host in hosts] + [{"address": "a", "extra_hosts": hosts}]
    text = json.dumps({"version": 1, "organization": "a", "registry": registry})
    policy = read(text, "policy.json")
    assert len(policy.registry) == 20_001
    assert policy.registry[-1].extra_hosts[-1] == parse_pattern(hosts[-1])
