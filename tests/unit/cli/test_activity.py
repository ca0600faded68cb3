"""``ramnet activity`` and ``ramnet policy suggest``: what is in the store, for people and tools."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ramnet import __version__
from ramnet.core.activity import NameFrom, Record, Verdict, plain_record
from ramnet.core.policy import initial_policy_text, parse_policy
from ramnet.core.terms import TrafficClass
from ramnet.host.activity import Reader, Store, store_path
from tests.unit.cli.conftest import Run

ROOT = Path(__file__).resolve().parents[3]
HOUR = 3_600
VERDICTS = (Verdict.POLICY, Verdict.DENIED, Verdict.FAILED, Verdict.WOULD_DENY)


def record(number: int, age: float, verdict: Verdict = Verdict.DENIED) -> Record:
    at = round(time.time() - age, 3)
    return Record(
        verdict,
        at,
        at,
        TrafficClass.ENGINE,
        source="192.0.2.10",
        name=f"r{number}.example",
        name_from=NameFrom.SNI,
        address="198.51.100.7",
        port=443,
        protocol="tcp",
        why="the policy does not allow it",
    )


@pytest.fixture
def state(tmp_path: Path) -> str:
    """Four records, of 4, 3, 2 and 1 hours ago."""
    records = [record(n, (4 - n) * HOUR - 60, verdict) for n, verdict in enumerate(VERDICTS)]
    Store(str(tmp_path)).append(records)
    return str(tmp_path)


def names(text: str) -> list[str]:
    return [item["name"] for item in json.loads(text)["records"]]


def test_a_table_for_people(ramnet: Run, state: str) -> None:
    said = ramnet("activity", "--state-dir", state)
    head, *lines = said.out.splitlines()
    assert (said.code, said.err) == (0, "")
    assert head.split() == ["time", "verdict", "class", "who", "what", "why"]
    assert [line.split()[2] for line in lines] == [str(verdict) for verdict in VERDICTS]
    for part in ("engine", "192.0.2.10", "r1.example:443 at 198.51.100.7", "does not allow it"):
        assert part in lines[1]


def test_json_is_one_document(ramnet: Run, state: str) -> None:
    said = ramnet("activity", "--json", "--state-dir", state)
    found = json.loads(said.out)
    assert (said.code, set(found), found["schema"]) == (0, {"schema", "records"}, 1)
    assert len(found["records"]) == 4
    assert found["records"][1]["verdict"] == "denied"
    assert set(found["records"][0]) == set(plain_record(record(0, 0)))


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((), [0, 1, 2, 3]),
        (("--since", "3h"), [1, 2, 3]),
        (("--since", "120m"), [2, 3]),
        (("--since", "1d"), [0, 1, 2, 3]),
        (("--since", "1s"), []),
        (("--since", "2001-01-01"), [0, 1, 2, 3]),
        (("--since", "2001-01-01T12:00:00+02:00"), [0, 1, 2, 3]),
        (("--since", "2999-01-01"), []),
        (("--last", "1"), [3]),
        (("--last", "9"), [0, 1, 2, 3]),
        (("--verdict", "denied"), [1]),
        (("--verdict", "denied", "--verdict", "would-deny"), [1, 3]),
        (("--verdict", "denied", "--last", "1"), [1]),
        (("--verdict", "denied", "--since", "1h"), []),
    ],
)
def test_choosing(ramnet: Run, state: str, arguments: tuple[str, ...], wanted: list[int]) -> None:
    said = ramnet("activity", "--json", "--state-dir", state, *arguments)
    assert said.code == 0
    assert names(said.out) == [f"r{number}.example" for number in wanted]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--since", "yesterday"), "30s, 5m, 1h or 7d"),
        (("--since", "5"), "30s, 5m, 1h or 7d"),
        (("--since", ""), "30s, 5m, 1h or 7d"),
        (("--since", "1w"), "30s, 5m, 1h or 7d"),
        (("--since", "9" * 5_000 + "d"), "30s, 5m, 1h or 7d"),
        (("--last", "0"), "x>=1"),
        (("--verdict", "allowed"), "'would-deny'"),
    ],
)
def test_bad_input_gets_a_hint(ramnet: Run, arguments: tuple[str, ...], hint: str) -> None:
    said = ramnet("activity", *arguments)
    assert (said.code, said.out) == (2, "")
    assert hint in said.err


def test_a_time_before_all_times(ramnet: Run, state: str) -> None:
    said = ramnet("activity", "--json", "--since", "999999999d", "--state-dir", state)
    assert (said.code, len(names(said.out))) == (0, 4)


def test_without_a_record_there_is_nothing_to_show(ramnet: Run, tmp_path: Path) -> None:
    said = ramnet("activity", "--state-dir", str(tmp_path))
    assert (said.code, len(said.out.splitlines())) == (0, 1)
    assert json.loads(ramnet("activity", "--json", "--state-dir", str(tmp_path)).out) == {
        "schema": 1,
        "records": [],
    }


@pytest.mark.parametrize("verb", [("activity",), ("policy", "suggest")])
def test_whoever_may_not_read_it_needs_root(
    ramnet: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    verb: tuple[str, ...],
) -> None:
    class Closed(Reader):
        def read(self) -> Any:
            raise PermissionError

    place = "policy" if "suggest" in verb else "activity"
    monkeypatch.setattr(f"ramnet.cli.{place}.Reader", Closed)
    policy = tmp_path / "p.toml"
    policy.write_text(initial_policy_text("acme"))
    more = ("--policy", str(policy)) if "suggest" in verb else ()
    said = ramnet(*verb, "--state-dir", str(tmp_path), *more)
    assert said.code == 77
    assert "needs root" in said.err
    assert f"hint: try `sudo ramnet {' '.join(verb)}`" in said.err


def test_a_store_that_is_broken_is_told(ramnet: Run, tmp_path: Path) -> None:
    (tmp_path / "activity").write_text("in the way")
    said = ramnet("activity", "--state-dir", str(tmp_path))
    assert said.code == 1
    assert "cannot be read" in said.err


def test_what_a_client_said_does_not_reach_the_terminal_raw(ramnet: Run, tmp_path: Path) -> None:
    evil = replace(record(1, 0), why="\x1b[2Jgone\r\u202e\nnext")
    Store(str(tmp_path)).append([evil])
    out = ramnet("activity", "--state-dir", str(tmp_path)).out
    assert not {"\x1b", "\r", "\u202e"} & set(out)
    assert "\\u001b[2Jgone" in out
    assert len(out.splitlines()) == 2


@pytest.mark.parametrize("as_json", [True, False])
def test_following(state: str, as_json: bool) -> None:
    command = [sys.executable, "-m", "ramnet", "activity", "--follow", "--last", "1"]
    command += ["--state-dir", state, *(["--json"] if as_json else [])]
    pipes: Any = {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "TZ": "UTC"}, **pipes) as process:
        assert process.stdout is not None
        try:
            if not as_json:
                assert process.stdout.readline().startswith("time ")
            assert "r3.example" in process.stdout.readline()
            Store(state).append([record(7, 0), record(8, 0, Verdict.FAILED)])
            found = [process.stdout.readline() for _ in range(2)]
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    if as_json:
        assert [json.loads(line)["name"] for line in found] == ["r7.example", "r8.example"]
    else:
        assert ["r7.example" in found[0], "r8.example" in found[1]] == [True, True]


# policy suggest


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "p.toml"
    path.write_text(initial_policy_text("acme"))
    return path


def test_a_suggestion_completes_the_policy(ramnet: Run, state: str, policy: Path) -> None:
    arguments = ("policy", "suggest", "--policy", str(policy), "--state-dir", state)
    said = ramnet(*arguments)
    assert (said.code, said.err) == (0, "")
    with policy.open("a") as file:
        file.write(said.out)
    found = parse_policy(policy.read_text(), source="p.toml", ramnet_version=__version__)
    assert [str(entry.address) for entry in found.registry] == [
        "docker.io",
        "r1.example",
        "r3.example",
    ], "what was denied, and what would have been"
    assert ramnet("policy", "validate", str(policy)).code == 0
    assert ramnet(*arguments).out.startswith("# Nothing was refused")


def test_a_suggestion_from_some_time_on(ramnet: Run, state: str, policy: Path) -> None:
    arguments = ("policy", "suggest", "--policy", str(policy), "--state-dir", state)
    assert "r1.example" not in ramnet(*arguments, "--since", "2h").out
    assert "r3.example" in ramnet(*arguments, "--since", "2h").out
    store = Path(state)
    assert store_path(state).is_relative_to(store)
    Store(state).append([record(9, 8 * 24 * HOUR)])
    assert "r9.example" not in ramnet(*arguments).out, "7 days by default"


def test_a_suggestion_needs_a_policy(ramnet: Run, tmp_path: Path) -> None:
    said = ramnet("policy", "suggest", "--policy", str(tmp_path / "gone.toml"))
    assert said.code == 1
    assert "does not exist" in said.err
