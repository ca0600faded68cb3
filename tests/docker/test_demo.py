"""``ramnet demo`` as its user runs it: to the end, interrupted, and without the right to."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ramnet.cli.main import main
from ramnet.errors import LabError
from ramnet.lab import demo, janitor
from ramnet.lab.lab import Lab
from ramnet.lab.programs import PYTHON_PATH
from ramnet.lab.screen import Screen
from ramnet.lab.story import Count, Story

pytestmark = pytest.mark.docker

# The interpreter may be where only root can read: rights are dropped when all is imported.
_AS_NOBODY = """
import locale, os
import ramnet.cli.demo
from ramnet.cli.main import main
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
main(["demo"])
"""
DEMO = (sys.executable, "-m", "ramnet", "demo")
MINUTE = 60.0
# The deadline of the slowest machine, which runs other things as well.
RUN_SECONDS = 170.0
STEP_SECONDS = 60.0


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Where the demo makes its lab: a short path, as dockerd puts unix sockets there."""
    with tempfile.TemporaryDirectory(prefix="demo-") as path:
        yield Path(path)


def environment(scratch: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "FORCE_COLOR"}
    return {**kept, "TMPDIR": str(scratch), "PYTHONPATH": str(PYTHON_PATH)}


def machine() -> tuple[str, ...]:
    """The network of the machine as this process sees it: a demo must not touch any of it."""
    commands = (
        ["nft", "-s", "list", "ruleset"],
        ["ip", "-o", "link"],
        ["ip", "route", "show", "table", "all"],
    )
    return tuple(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for command in commands
    )


def start(scratch: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*DEMO, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(scratch),
        start_new_session=True,
    )


def lab_of(scratch: Path) -> Path:
    """The directory of the lab, as soon as there is one."""
    deadline = time.monotonic() + STEP_SECONDS
    while time.monotonic() < deadline:
        found = list(scratch.glob(f"{janitor.PREFIX}*"))
        if found:
            return found[0]
        time.sleep(0.01)
    pytest.fail("the demo made no lab")


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    pytest.fail(f"the demo ended without {text!r}: {said}")


def test_the_demo_runs_to_the_end_and_leaves_nothing(scratch: Path) -> None:
    before = machine()
    process = start(scratch, "--json")
    lab = lab_of(scratch)
    out, told = process.communicate(timeout=RUN_SECONDS)
    report = json.loads(out)
    assert process.returncode == 0, told
    assert report["held"] is True
    assert report["seconds"] < MINUTE
    # The daemon was killed under this, and the same without it is the control.
    assert report["enforced"]["tried"] > 200
    assert report["enforced"]["seen"] == 0
    assert report["control"]["seen"] == report["control"]["tried"] > 100
    assert all(check["held"] for check in report["checks"])
    assert any("containers" in line for line in report["not_shown"])
    # What a person reads: the engine's own words, the counts, and no way to draw on a terminal.
    assert "valid for registry-access-denied-by-acme.ramnet.invalid, not ghcr.io" in told
    assert f"{report['enforced']['tried']} SYNs tried, 0 leaked" in told
    assert f"{report['control']['tried']} SYNs tried, {report['control']['seen']} seen" in told
    assert "\x1b" not in told
    assert "\r" not in told
    assert janitor.leftovers(lab) == []
    assert list(scratch.iterdir()) == []
    assert machine() == before


@pytest.mark.parametrize(
    ("number", "status", "when"),
    [
        (signal.SIGINT, 130, "1. A lab"),
        (signal.SIGINT, 130, "What is not allowed is refused"),
        (signal.SIGTERM, 143, "What is allowed works"),
    ],
    ids=["SIGINT-while-it-comes-up", "SIGINT-half-way", "SIGTERM-half-way"],
)
def test_an_interrupted_demo_leaves_nothing(
    scratch: Path, number: signal.Signals, status: int, when: str
) -> None:
    before = machine()
    process = start(scratch)
    read_until(process, when)
    lab = lab_of(scratch)
    process.send_signal(number)
    process.send_signal(number)  # impatient: the clean-up goes on
    _, told = process.communicate(timeout=STEP_SECONDS)
    # At once, not a moment later.
    assert janitor.leftovers(lab) == []
    assert list(scratch.iterdir()) == []
    assert process.returncode == status, told
    assert "interrupted" in told
    assert "Traceback" not in told
    assert machine() == before


def test_a_demo_that_is_killed_leaves_nothing_either(scratch: Path) -> None:
    process = start(scratch)
    read_until(process, "ramnet starts")
    lab = lab_of(scratch)
    assert janitor.leftovers(lab)  # so the look at what is left can fail
    process.kill()
    process.communicate(timeout=STEP_SECONDS)
    deadline = time.monotonic() + janitor.CLEAN_SECONDS
    while janitor.leftovers(lab) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert janitor.leftovers(lab) == []


def test_on_a_terminal_there_is_colour_and_a_line_that_moves(scratch: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        DEMO,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**environment(scratch), "TERM": "xterm"},
        start_new_session=True,
    ) as process:
        os.close(theirs)
        said = b""
        deadline = time.monotonic() + STEP_SECONDS
        while b"Without ramnet" not in said and time.monotonic() < deadline:
            said += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        while process.poll() is None:
            try:
                said += os.read(ours, 4096)
            except OSError:  # EIO: nobody holds the other end any more
                break
        os.close(ours)
        assert process.wait() == 130
    assert b"\x1b[1m" in said
    # The cursor that was hidden is shown again.
    assert said.count(b"\x1b[?25l") == said.count(b"\x1b[?25h") > 0


def run_with(monkeypatch: pytest.MonkeyPatch, tell: Callable[[Screen], None]) -> int:
    """Run the demo in this process with another story; return its exit status."""
    labs: list[Lab] = []

    def init(story: Story, lab: Lab, screen: Screen) -> None:
        labs.append(lab)
        story.enforced = story.control = Count(0, 0)
        story.not_shown = []
        monkeypatch.setattr(story, "tell", lambda _seconds: tell(screen), raising=False)

    monkeypatch.setattr(Story, "__init__", init)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as caught:
        main(["demo"])
    assert signal.getsignal(signal.SIGINT) is before
    assert janitor.leftovers(labs[0].directory) == []
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_what_does_not_hold_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tell(screen: Screen) -> None:
        screen.step("A promise")
        screen.expect("it is kept", "it is", held=True)
        screen.expect("this one too", "it is not", held=False, words="dial tcp: whatever")

    assert run_with(monkeypatch, tell) == 1
    told = capsys.readouterr().out
    assert "\n   ok  it is kept: it is\n" in told
    assert "\n   NOT this one too: it is not\n       dial tcp: whatever\n" in told
    assert "1 of 2 expectations held" in told
    assert "NOT held: A promise: this one too: it is not: dial tcp: whatever\n" in told


def test_a_demo_that_fails_takes_the_lab_down(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tell(_screen: Screen) -> None:
        raise LabError("the far side is gone", hint="look for it")

    assert run_with(monkeypatch, tell) == 1
    assert capsys.readouterr().err == "ramnet: the far side is gone\nhint: look for it\n"


def test_what_is_left_behind_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Lab, "leftovers", lambda _lab: ["mount nothing"])
    monkeypatch.setattr(demo, "CLEAN_SECONDS", 0.1)
    assert run_with(monkeypatch, lambda _screen: None) == 1
    assert "left something behind\nhint: mount nothing\n" in capsys.readouterr().err


def test_as_anybody_but_root_it_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-B", "-c", _AS_NOBODY],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(PYTHON_PATH), "PATH": os.environ["PATH"]},
    )
    assert done.returncode == 77, done.stderr
    assert "needs root" in done.stderr
    assert "hint: try `sudo ramnet demo`" in done.stderr
    assert done.stdout == ""
