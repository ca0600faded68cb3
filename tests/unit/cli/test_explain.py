"""``ramnet explain``, with and without a daemon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ramnet.errors import ControlError
from tests.unit.cli.conftest import Answer, Run

KEYS = {"schema", "target", "host", "port", "allowed", "reason", "registry", "leases", "source"}
KEYS |= {"class", "organization", "entries", "catalogue", "companions", "elements", "classes"}
KEYS |= {"notes", "advice"}
REPORT = {
    "schema": 1,
    "target": "quay.io",
    "host": "quay.io",
    "port": 443,
    "allowed": True,
    "reason": "catalogue: api host of quay.io",
    "registry": "quay.io",
    "leases": [
        {"address": "198.51.100.1", "port": 443, "seconds": 300, "names": ["quay.io", "b.example"]}
    ],
    "source": "daemon",
}


@pytest.fixture
def arguments(tmp_path: Path) -> tuple[str, ...]:
    path = tmp_path / "policy.toml"
    path.write_text('version = 1\norganization = "acme"\n[[registry]]\naddress = "docker.io"\n')
    return ("--policy", str(path), "--runtime-dir", str(tmp_path))


@pytest.mark.parametrize("verb", ["explain", "why"])
def test_without_a_daemon_the_policy_file_is_asked(
    ramnet: Run, arguments: tuple[str, ...], verb: str
) -> None:
    said = ramnet(verb, "nginx", *arguments)
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[:5] == [
        "nginx: allowed",
        "  host      registry-1.docker.io port 443",
        "  reason    catalogue: api host of docker.io",
        "  registry  docker.io",
        "  policy    registry 1: docker.io, port 443, by registry-1.docker.io",
    ]
    assert any(line.startswith("  hosts     allowed, auth: auth.docker.io") for line in lines)
    assert lines[-4:] == [
        "  class     engine (strict): accepted: catalogue: api host of docker.io",
        "  class     host (catalog): accepted: catalogue: api host of docker.io",
        "  class     containers (catalog): accepted: catalogue: api host of docker.io",
        "  source    the policy file alone: no daemon is running",
    ]


def test_a_refusal_exits_with_1_and_says_what_would_allow_it(
    ramnet: Run, arguments: tuple[str, ...]
) -> None:
    said = ramnet("explain", "quay.io/org/app:v1", *arguments)
    assert said.code == 1
    lines = said.out.splitlines()
    assert lines[0] == "quay.io/org/app:v1: denied"
    assert "  catalogue api host of quay.io (Quay)" in lines
    assert "  to allow  ramnet policy add quay.io" in lines
    assert not any(line.startswith(("  registry", "  policy")) for line in lines)


def test_the_verdict_for_one_class(ramnet: Run, arguments: tuple[str, ...]) -> None:
    said = ramnet("explain", "unknown.example", "--class", "containers", *arguments)
    assert (said.code, said.out.splitlines()[0]) == (0, "unknown.example: allowed to containers")
    assert said.out.count("  class ") == 1
    assert ramnet("explain", "unknown.example", *arguments).code == 1
    assert ramnet("explain", "unknown.example", "--class", "engine", *arguments).code == 1
    said = ramnet("explain", "quay.io", "--class", "host", "--json", *arguments)
    found = json.loads(said.out)
    assert (said.code, found["class"], found["allowed"]) == (1, "host", False)
    assert ramnet("explain", "quay.io", "--class", "nobody", *arguments).code == 2


@pytest.mark.parametrize(
    ("enforcement", "target", "said"),
    [
        (
            'engine = "catalog"',
            "free.example",
            "the catalogue does not know it as a registry's own host",
        ),
        ('engine = "off"', "quay.io", "but it is not refused: what this class sends"),
        ('mode = "audit"', "quay.io", "; nothing is refused in audit, it is recorded"),
    ],
)
def test_what_is_not_listed_and_not_refused_is_allowed(
    ramnet: Run, arguments: tuple[str, ...], enforcement: str, target: str, said: str
) -> None:
    policy = Path(arguments[1])
    policy.write_text(f"{policy.read_text()}[enforcement]\n{enforcement}\n")
    found = ramnet("explain", target, *arguments)
    assert (found.code, found.out.splitlines()[0]) == (0, f"{target}: allowed")
    (reason,) = (line for line in found.out.splitlines() if line.startswith("  reason "))
    assert "no registry of the policy covers it" in reason
    assert said in reason
    assert f"  to list   ramnet policy add {target}" in found.out.splitlines()
    assert "to allow" not in found.out
    assert ("  note      the policy's mode is audit" in found.out) is ("audit" in enforcement)


BLOBS = "*.blob.core.windows.net"
ADMITS = f"{BLOBS} admits every name below blob.core.windows.net, whoever has it"
WIDE = """\
version = 1
organization = "acme"
[[registry]]
address = "quay.io"
nickname = "Quay"
expires = 2020-01-31
[[registry]]
address = "me.azurecr.io"
extra_hosts = ["*.blob.core.windows.net"]
expires = 2999-12-31
[[registry]]
address = "any.example:*"
[[registry]]
address = "r.example:5000"
"""


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("quay.io", "registry 1: quay.io (Quay), port 443; expired, 2020-01-31 was its last day"),
        (
            "x.blob.core.windows.net",
            f"registry 2: me.azurecr.io, port 443, by {BLOBS}; until 2999-12-31; {ADMITS}",
        ),
        ("any.example:22", "registry 3: any.example:*, any port, by any.example"),
        ("r.example", "registry 4: r.example:5000, port 5000, by r.example; not this port"),
    ],
)
def test_the_entries_of_the_policy(
    ramnet: Run, arguments: tuple[str, ...], tmp_path: Path, target: str, line: str
) -> None:
    (tmp_path / "policy.toml").write_text(WIDE)
    assert f"  policy    {line}" in ramnet("explain", target, *arguments).out.splitlines()


def test_what_the_catalogue_knows(ramnet: Run, arguments: tuple[str, ...]) -> None:
    host = "docker-images-prod.s3.dualstack.eu-west-1.amazonaws.com"
    lines = ramnet("explain", host, *arguments).out.splitlines()
    assert (
        "  catalogue blob host of docker.io (Docker Hub), in region eu-west-1;"
        " its addresses may serve others too"
    ) in lines
    assert "  to allow  ramnet policy add docker.io --region eu-west-1" in lines
    lines = ramnet("explain", "sso.redhat.com", *arguments).out.splitlines()
    assert any(line.endswith("not verified; its addresses may serve others too") for line in lines)


DECISION = {
    "address": "198.51.100.1",
    "verdict": "refused",
    "chain": "judge",
    "rule": "goto refuse_engine",
    "comment": "why\x1b[31m",
    "set": None,
    "element": None,
    "seconds": None,
    "delayed": True,
}
ELEMENT = {
    "book": "allow",
    "set": "allow4",
    "element": "198.51.100.1 . 443",
    "held": True,
    "kernel_seconds": 299,
    "address": "198.51.100.1",
    "port": 443,
    "seconds": 300,
    "names": ["quay.io"],
}
NONE = {"address": "198.51.100.2", "verdict": "passes", "chain": None}


def test_what_only_the_daemon_knows(
    ramnet: Run, arguments: tuple[str, ...], daemon: dict[str, Answer]
) -> None:
    gone = {**ELEMENT, "held": False, "kernel_seconds": None, "port": 0, "names": []}
    others = [{**DECISION, "address": f"198.51.100.{last}"} for last in range(10, 30)]
    many = [{**ELEMENT, "address": f"198.51.100.{last}"} for last in range(10, 30)]
    daemon["explain"] = REPORT | {
        "elements": [ELEMENT, gone, {**ELEMENT, "kernel_seconds": None}, *many],
        "classes": {
            "engine": {
                "mode": "strict",
                "verdict": "refused",
                "because": "so",
                "decisions": [DECISION, NONE, *others],
            }
        },
        "notes": ["the rules were removed"],
    }
    said = ramnet("explain", "quay.io", *arguments)
    assert "\x1b" not in said.out
    lines = said.out.splitlines()
    late = "any port, 300 s left, from a name that has run out; NOT in set allow4 of the kernel"
    lease = (
        "  lease     198.51.100.1 port 443, 300 s left, from quay.io; in set allow4 of the kernel"
    )
    assert lines[4:7] == [
        f"{lease}, 299 s",
        f"  lease     198.51.100.1 {late}",
        lease,
    ]
    assert "  lease     and 15 more (--json)" in lines
    assert "  class     engine (strict): refused: so" in lines
    at = lines.index(
        "  rule      refused by chain judge: goto refuse_engine # why?[31m;"
        " a first packet is dropped, its retransmission refused"
    )
    assert lines[at + 1].startswith("            for 198.51.100.1, 198.51.100.10, ")
    assert lines[at + 1].endswith(" and 17 more")
    assert "  rule      passes: no rule concerns it" in lines
    assert lines[-1] == "  note      the rules were removed"


@pytest.mark.parametrize(("target", "code"), [("nginx", 0), ("quay.io", 1), ("10.0.0.1:5000", 1)])
def test_the_keys_of_json(ramnet: Run, arguments: tuple[str, ...], target: str, code: int) -> None:
    said = ramnet("explain", "--json", target, *arguments)
    found = json.loads(said.out)
    assert (said.code, said.err) == (code, "")
    assert set(found) == KEYS
    assert (found["schema"], found["target"], found["source"]) == (1, target, "policy")
    assert found["allowed"] is (code == 0)


@pytest.mark.parametrize(
    "target", ["", " ", "https://quay.io", "*.quay.io", "a b", "x:99999/a", "UPPER", "\x1b[31m"]
)
def test_a_target_that_is_none(ramnet: Run, arguments: tuple[str, ...], target: str) -> None:
    said = ramnet("explain", target, *arguments)
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("ramnet: ")
    assert "hint: " in said.err
    assert "\x1b" not in said.err


def test_a_daemon_is_asked_first(
    ramnet: Run, arguments: tuple[str, ...], daemon: dict[str, Answer]
) -> None:
    daemon["explain"] = REPORT
    said = ramnet("explain", "quay.io", *arguments)
    assert said.code == 0
    assert said.out.splitlines() == [
        "quay.io: allowed",
        "  host      quay.io port 443",
        "  reason    catalogue: api host of quay.io",
        "  registry  quay.io",
        "  lease     198.51.100.1 port 443, 300 s left, from quay.io, b.example",
    ]
    assert json.loads(ramnet("explain", "--json", "quay.io", *arguments).out) == REPORT
    daemon["explain"] = REPORT | {"allowed": False}
    assert ramnet("explain", "quay.io", *arguments).code == 1


def test_a_daemon_that_refuses_is_not_passed_over(
    ramnet: Run, arguments: tuple[str, ...], daemon: dict[str, Answer]
) -> None:
    daemon["explain"] = ControlError("the daemon is still starting", hint="try again")
    said = ramnet("explain", "nginx", *arguments)
    assert (said.code, said.out) == (1, "")
    assert said.err == "ramnet: the daemon is still starting\nhint: try again\n"


def test_the_runtime_dir_may_come_from_the_environment(
    ramnet: Run, tmp_path: Path, daemon: dict[str, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon["explain"] = REPORT
    monkeypatch.setenv("RAMNET_RUNTIME_DIR", str(tmp_path))
    assert ramnet("explain", "quay.io").out.startswith("quay.io: allowed\n")
