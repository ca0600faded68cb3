"""The daemon with the rights of its service, and the helper that does the rest for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramnet.errors import ControlError
from ramnet.host import helper
from ramnet.host.control import ask
from ramnet.host.probe import probe
from ramnet.lab.process import Process, wait_until
from ramnet.lab.programs import PYTHON_PATH
from ramnet.lab.ramnet import READY, READY_SECONDS, Daemon
from tests.netns.places import reach
from tests.netns.scoped import PRECISE
from tests.netns.scopeworld import House, a_house, configured, marked, program
from tests.netns.support import ALLOWED, CORP_REGISTRY, policy, remove_rules, wait_leases

pytestmark = pytest.mark.netns

UNIT = Path(__file__).parents[2] / "systemd/ramnet.service"
EVIL = [("203.0.113.200", 443)]


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with a_house() as made:
        yield made


def rights() -> list[str]:
    """Return what the unit of the daemon leaves of root's rights, for setpriv."""
    lines = UNIT.read_text("utf-8").splitlines()
    found = [line.partition("=")[2] for line in lines if line.startswith("CapabilityBoundingSet=")]
    names = [name.lower().removeprefix("cap_") for line in found for name in line.split()]
    return ["--no-new-privs", f"--bounding-set=-all,{','.join(f'+{name}' for name in names)}"]


class Confined(Daemon):
    """A daemon with the rights of its service; ``start_helper`` starts what it asks."""

    helper_process: Process | None = None

    @property
    def helper_dir(self) -> Path:
        return self._directory / "helper"

    def start_helper(self) -> None:
        argv = [sys.executable, "-m", "ramnet", "helper", "--config", str(self.config_file)]
        argv += ["--runtime-dir", str(self.helper_dir)]
        log, env = self._directory / "helper.log", {"PYTHONPATH": str(PYTHON_PATH)}
        self.helper_process = self.sandbox.popen(argv, log=log, env=env)
        wait_until((self.helper_dir / "control.sock").exists, READY_SECONDS, "the helper")

    def start(self, *, wait: bool = True) -> None:
        argv = ["setpriv", *rights(), sys.executable, "-m", "ramnet", "run"]
        argv += ["--policy", str(self.policy_file), "--config", str(self.config_file)]
        argv += ["--runtime-dir", str(self.runtime_dir), "--state-dir", str(self.state_dir)]
        environment = {**self._environment(), helper.ENVIRONMENT: str(self.helper_dir)}
        self._process = self.sandbox.popen(argv, log=self._log_file(), env=environment)
        if wait:
            self._process.wait_for_line(READY, READY_SECONDS)

    def end(self) -> None:
        self.abandon()
        if self.helper_process is not None:
            self.helper_process.kill()


@pytest.fixture
def confined(house: House, tmp_path: Path) -> Iterator[Confined]:
    made = Confined(house.lab.client, tmp_path, policy(CORP_REGISTRY), None)
    try:
        yield made
    finally:
        made.end()
        remove_rules(house.lab.client)


def test_without_the_helper_these_rights_do_not_do(confined: Confined) -> None:
    """The control: it ends, with what to do, and has not changed anything."""
    confined.start(wait=False)
    assert confined.wait() == 1
    assert "the helper does not do 'kernel'" in confined.log
    assert "systemctl status ramnet-helper" in confined.log


@pytest.mark.parametrize("rung", PRECISE)
def test_with_the_helper_it_enforces(house: House, confined: Confined, rung: str) -> None:
    group = house.group("engine")
    confined.config_file.write_text(configured(rung, group), encoding="utf-8")
    confined.start_helper()
    confined.start()
    wait_leases(confined, 1)
    status = confined.status()
    assert status["state"] == "enforcing", status
    assert status["scope"]["mode"] == rung
    engine = program(house.lab.client, group)
    said = reach(engine, [*EVIL, ALLOWED[0]])
    assert said == {EVIL[0]: {"refused"}, ALLOWED[0]: {"reached"}}
    # It goes on without the helper, after a restart of its own only with it.
    assert confined.helper_process is not None
    confined.helper_process.kill()
    assert reach(engine, EVIL) == {EVIL[0]: {"refused"}}
    assert confined.status()["state"] in {"enforcing", "degraded"}
    confined.helper_dir.joinpath("control.sock").unlink(missing_ok=True)
    confined.start_helper()
    if rung == "mark":
        assert marked(group)
        assert ask(str(confined.helper_dir), "unmark")["removed"] == 1


def test_the_helper_tells_what_is_so(confined: Confined, monkeypatch: pytest.MonkeyPatch) -> None:
    confined.start_helper()
    monkeypatch.setenv(helper.ENVIRONMENT, str(confined.helper_dir))
    told = helper.kernel()
    found = probe()
    assert {item.feature: item.present for item in told.values()} == {
        item.feature: item.present for item in found.values()
    }
    assert confined.helper_process is not None
    theirs = Path(f"/proc/{confined.helper_process.pid}/fd")
    held = [str(entry.readlink()) for entry in theirs.iterdir()]
    inodes = frozenset(name[8:-1] for name in held if name.startswith("socket:"))
    assert helper.holders(inodes) == {0}
    assert helper.holders(frozenset({"0"})) == frozenset()
    assert isinstance(helper.facts(), tuple)


@pytest.mark.parametrize("inodes", [None, "1", [1], [["1"]], {"a": 1}])
def test_the_helper_takes_inodes_only(confined: Confined, inodes: object) -> None:
    confined.start_helper()
    with pytest.raises(ControlError) as caught:
        ask(str(confined.helper_dir), "holders", inodes=inodes)
    assert "takes a list of inodes" in caught.value.message


def test_the_helper_has_no_other_verbs(confined: Confined) -> None:
    confined.start_helper()
    with pytest.raises(ControlError, match="does not know"):
        ask(str(confined.helper_dir), "run", path=json.dumps("/bin/sh"))
