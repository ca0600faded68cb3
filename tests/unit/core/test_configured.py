"""Every registry of the settings, judged by a policy."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from ramnet.core import configured
from ramnet.core.configured import MAX_NAMES, MAX_ROWS, Survey, Verdict, uses
from ramnet.core.dnsremarks import Said
from ramnet.core.enginefacts import (
    Fact,
    Insecure,
    Mirror,
    Named,
    Snapshotter,
    Unreadable,
    endpoint,
)
from ramnet.core.names import HostName
from tests.unit.core.support import CATALOG, TODAY
from tests.unit.core.test_dnsremarks import policy

HUB = '[[registry]]\naddress = "docker.io"\n'
ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"


def survey(facts: Iterable[Fact], text: str = HUB) -> Survey:
    return Survey(facts, policy(text), CATALOG, TODAY)


def named(*urls: str) -> list[Fact]:
    return [Named(endpoint(url, "https"), "login", "f") for url in urls]


def row(url: str, text: str = HUB) -> dict[str, Any]:
    (found,) = survey(named(url), text).report()["registries"]
    assert isinstance(found, dict)
    return found


def test_each_registry_of_a_source_once_with_what_it_is_there_for() -> None:
    where = endpoint("http://m.example:5000", "https")
    found = uses(
        [
            Mirror("docker.io", where, "daemon.json"),
            Insecure(where, "daemon.json"),
            Mirror("docker.io", where, "daemon.json"),
            Mirror("docker.io", where, "hosts.toml"),
            Insecure(ip_network("10.0.0.0/8"), "daemon.json"),
            Snapshotter("daemon.json"),
        ]
    )
    assert [(use.source, use.shown, use.roles) for use in found] == [
        ("daemon.json", "m.example:5000", ("mirror of docker.io", "insecure")),
        ("hosts.toml", "m.example:5000", ("mirror of docker.io",)),
        ("daemon.json", "10.0.0.0/8", ("insecure",)),
    ]


@pytest.mark.parametrize(
    ("url", "entry"),
    [
        ("docker.io", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("auth.docker.io", "docker.io"),
        ("reg.example:5000", "reg.example:5000"),
        ("10.1.2.3:5000", "reg.example:5000"),
        ("localhost:5000", "localhost:5000"),
        ("github.com", "github.com"),
    ],
)
def test_what_is_allowed(url: str, entry: str) -> None:
    text = HUB + '[[registry]]\naddress = "reg.example:5000"\nnetworks = ["10.1.0.0/16"]\n'
    text += '[[registry]]\naddress = "localhost:5000"\n[[destination]]\naddress = "github.com"\n'
    found = row(url, text)
    assert (found["verdict"], found["entry"], found["advice"]) == ("allowed", entry, None)
    assert survey(named(url), text).passed


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("quay.io", "ramnet policy add quay.io"),
        ("https://quay.io/v2/", "ramnet policy add quay.io"),
        ("registry.hub.docker.com:5000", "ramnet policy add registry.hub.docker.com:5000"),
        ("reg.example:5000", "ramnet policy add reg.example:5000"),
        ("http://reg.example", "ramnet policy add reg.example:80"),
        ("10.1.2.3:5000", "ramnet policy add 10.1.2.3:5000"),
        ("[2001:db8::1]:5000", "ramnet policy add '[2001:db8::1]:5000'"),
        (ECR, f"ramnet policy add {ECR}"),
        # The registry of a customer's account whose companion this is cannot be told.
        ("api.ecr.eu-west-1.amazonaws.com", "ramnet policy add api.ecr.eu-west-1.amazonaws.com"),
        # A companion is no registry: its registry is what lacks.
        ("cdn.quay.io", "ramnet policy add quay.io"),
    ],
)
def test_what_is_denied_and_what_would_allow_it(url: str, command: str) -> None:
    found = row(url)
    assert (found["verdict"], found["entry"]) == ("denied", None)
    assert found["reason"]
    assert found["advice"]["command"] == command
    assert not survey(named(url)).passed


def test_the_advice_makes_it_allowed() -> None:
    facts = named("quay.io", "reg.example:5000", "10.1.2.3:5000", ECR, "http://plain.example")
    found = survey(facts)
    lines = [item.advice.toml(found.policy) for item in found.rows if item.advice is not None]
    assert len(lines) == len(facts)
    assert survey(facts, HUB + "".join(lines)).passed


def test_docker_hub_by_its_old_name_is_advised_as_docker_hub() -> None:
    found = row("https://index.docker.io/v1/", '[[registry]]\naddress = "quay.io"\n')
    assert found["advice"]["address"] == "docker.io"
    assert found["host"] == "index.docker.io"


def test_an_entry_that_has_ended_is_told() -> None:
    found = row("quay.io", HUB + '[[registry]]\naddress = "quay.io"\nexpires = 2026-02-28\n')
    assert found["verdict"] == "denied"
    assert found["reason"] == "the policy's entry quay.io ended on 2026-02-28"
    assert row("quay.io", '[[registry]]\naddress = "quay.io"\nexpires = 2026-03-01\n')["entry"]


def test_the_note_of_the_catalogue_is_passed_on() -> None:
    assert "blob.core.windows.net" in row("corp.azurecr.io")["note"]
    assert row("corp.azurecr.io:5000")["note"] is None
    assert row("reg.example")["note"] is None


def test_what_cannot_be_read_is_unknown() -> None:
    found = row("///")
    assert (found["verdict"], found["host"], found["port"]) == ("unknown", None, None)
    assert found["registry"] == "(an address that cannot be read)"


@pytest.mark.parametrize(
    ("network", "verdict"),
    [
        ("10.1.2.0/24", Verdict.ALLOWED),
        ("10.0.0.0/8", Verdict.UNKNOWN),
        ("2001:db8:1::/48", Verdict.ALLOWED),
        ("2001:db9::/32", Verdict.UNKNOWN),
    ],
)
def test_a_network_of_insecure_registries(network: str, verdict: Verdict) -> None:
    text = '[[registry]]\naddress = "a.example"\nnetworks = ["10.1.0.0/16", "2001:db8::/32"]\n'
    (found,) = survey([Insecure(ip_network(network), "f")], text).rows
    assert found.verdict is verdict


def test_what_could_not_be_read_does_not_pass() -> None:
    found = survey([Unreadable("f", "why"), Unreadable("f", "why")])
    assert not found.passed
    assert found.report()["unreadable"] == [{"source": "f", "why": "why"}]


def test_an_empty_machine_passes() -> None:
    found = survey([])
    report = found.report()
    assert found.passed
    assert (report["registries"], report["passed"], report["audit"]) == ([], True, False)
    audit = HUB + '[enforcement]\nmode = "audit"\n'
    assert survey([], audit).report()["audit"] is True


def test_rows_are_bounded_and_what_is_left_out_does_not_pass() -> None:
    text = '[[registry]]\naddress = "*.corp.example"\n'
    facts = named(*(f"r{number}.corp.example" for number in range(MAX_ROWS + 3)))
    found = survey(facts, text)
    assert (len(found.rows), found.left_out, found.passed) == (MAX_ROWS, 3, False)
    assert survey(facts[:MAX_ROWS], text).passed


# --- with DNS


def test_only_what_is_allowed_is_asked_for() -> None:
    facts = named("quay.io", "docker.io", "localhost:5000", "reg.example:5000", "10.1.2.3")
    text = HUB + '[[registry]]\naddress = "reg.example:5000"\nextra_hosts = ["b.example"]\n'
    found = survey([*facts, Insecure(ip_network("10.0.0.0/8"), "f")], text)
    assert found.names == ("registry-1.docker.io", "reg.example", "b.example")


def test_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_NAMES >= 100
    monkeypatch.setattr(configured, "MAX_NAMES", 1)
    found = survey(named("docker.io", "auth.docker.io"))
    assert found.names == ("registry-1.docker.io",)
    found.answer({found.names[0]: Said(error="no answer in time")})
    assert found.report()["dns"] == {
        "asked": 1,
        "failed": 1,
        "error": "no answer in time",
        "not_asked": 1,
    }


def test_what_dns_says_is_beside_the_row_and_the_entry() -> None:
    text = '[[registry]]\naddress = "a.example"\n[[registry]]\naddress = "b.example"\n'
    found = survey(named("a.example", "b.example", "quay.io"), text)
    good = (ip_address("198.51.100.1"),)
    found.answer(
        {
            HostName("a.example"): Said(exists=False),
            HostName("b.example"): Said(addresses=good, chain=(HostName("a.example"),)),
        }
    )
    report = found.report()
    said = [[remark["text"] for remark in item["remarks"]] for item in report["registries"]]
    assert said == [["DNS says that there is no such name"], [], []]
    assert [(item["place"], item["host"], item["text"]) for item in report["entries"]] == [
        ("registry[0].address", "a.example", "DNS says that there is no such name"),
        (
            "registry[0].address",
            "a.example",
            "b.example, which is listed as well, is an alias of it",
        ),
    ]
    assert all(item["hint"] for item in report["entries"])
