"""What every test may count on: markers, a network namespace of its own, and no silent skips.

Safety: as root, the whole test process leaves the machine's network namespace before the first
test is imported. A test that forgets to make a namespace therefore loads its rules into an empty
one, and no packet leaves the machine. Each privileged test checks this again, and at the end the
machine's own namespace must not have gained a table of ours.

``netns``, ``docker`` and ``vm`` tests are skipped where they cannot run. With ``CI=true`` or
``RAMNET_REQUIRE_ALL=1`` a privileged test that does not run is a failure, whoever skipped it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.vm.kernels import KernelError, chosen

PROGRAMS = {
    "netns": ("ip", "nft", "nsenter", "unshare"),
    "docker": ("ip", "nft", "nsenter", "unshare", "dockerd", "docker", "docker-registry"),
    "vm": (
        *("apt-get", "git", "ip", "mkfs.ext4", "mmdebstrap", "nsenter", "qemu-img"),
        *("qemu-system-x86_64", "docker-registry", "setpriv", "tcpdump"),
    ),
}
pytest_plugins = ["tests.coverage_table"]

CLONE_NEWNET = 0x40000000
OWN_NETNS = Path("/proc/thread-self/ns/net")

# The machines that run this are shared and slow: a deadline would only measure them. In CI the
# examples are the same at each run, so that a red run says something about the change.
settings.register_profile("default", deadline=None)
settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow],
)


@dataclass(frozen=True, slots=True)
class Confinement:
    """The machine's network namespace, and the one that the tests were moved to.

    ``why_not`` says what kept the process where it was; it is empty when the move was made.
    """

    machine: str
    tests: str
    machine_fd: int
    tables_before: frozenset[str]
    why_not: str


CONFINEMENT = pytest.StashKey[Confinement]()


def everything_is_required() -> bool:
    """Whether a privileged test that cannot run is a failure."""
    return os.environ.get("CI", "").lower() in {"1", "true"} or (
        os.environ.get("RAMNET_REQUIRE_ALL") == "1"
    )


def our_tables(netns_fd: int) -> frozenset[str]:
    """List ramnet's tables in a network namespace; reads only."""
    if shutil.which("nft") is None or shutil.which("nsenter") is None:
        return frozenset()
    listing = subprocess.run(
        ["nsenter", f"--net=/proc/self/fd/{netns_fd}", "nft", "list", "tables"],
        check=False,
        capture_output=True,
        text=True,
        pass_fds=[netns_fd],
    )
    return frozenset(line for line in listing.stdout.splitlines() if "ramnet" in line)


def leave_machine_netns() -> str:
    """Move this process to a new network namespace; return why that did not work, if so."""
    if os.geteuid() != 0:
        return "needs root"
    libc = ctypes.CDLL(None, use_errno=True)  # os.unshare is of Python 3.12
    if libc.unshare(CLONE_NEWNET) != 0:
        return f"no network namespaces here: unshare: {os.strerror(ctypes.get_errno())}"
    if shutil.which("ip") is not None:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return ""


def pytest_configure(config: pytest.Config) -> None:
    """Choose the hypothesis profile and leave the machine's network namespace."""
    # What a shell starts in the background ignores Ctrl-C, and so would all that the tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.load_profile("ci" if everything_is_required() else "default")
    machine_fd = os.open(OWN_NETNS, os.O_RDONLY | os.O_CLOEXEC)
    machine = str(OWN_NETNS.readlink())
    why_not = leave_machine_netns()
    tables = frozenset() if why_not else our_tables(machine_fd)
    config.stash[CONFINEMENT] = Confinement(
        machine, str(OWN_NETNS.readlink()), machine_fd, tables, why_not
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by folder: nobody can forget it."""
    for item in items:
        for name in PROGRAMS:
            if name in item.path.relative_to(item.config.rootpath).parts[:-1]:
                item.add_marker(name)


def privileged_markers(item: pytest.Item) -> list[str]:
    """Name the privileged markers that a test carries."""
    return [name for name in PROGRAMS if item.get_closest_marker(name) is not None]


def why_it_cannot_run(markers: list[str], confinement: Confinement) -> str:
    """Say what a privileged test lacks on this machine; empty when nothing is missing."""
    if confinement.why_not:
        return confinement.why_not
    programs = sorted({program for name in markers for program in PROGRAMS[name]})
    missing = [program for program in programs if shutil.which(program) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what cannot run, and stop what would act on the machine's own namespace."""
    markers = privileged_markers(item)
    if not markers:
        return
    confinement = item.config.stash[CONFINEMENT]
    reason = why_it_cannot_run(markers, confinement)
    if reason:
        pytest.skip(reason)
    if str(OWN_NETNS.readlink()) != confinement.tests:
        pytest.exit("the test process left its own network namespace", returncode=1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a privileged test into a failure where everything is required."""
    report = yield
    if (
        report.skipped
        and not hasattr(report, "wasxfail")
        and privileged_markers(item)
        and everything_is_required()
    ):
        reason = call.excinfo.value if call.excinfo is not None else "skipped"
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: a privileged test must run here: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Do the same for a whole file that skips itself."""
    report = yield
    folders = collector.path.parts
    if report.skipped and everything_is_required() and any(name in folders for name in PROGRAMS):
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid}: privileged tests must run here: {report.longrepr}"
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if the machine's own namespace has gained a table of ours."""
    confinement = session.config.stash[CONFINEMENT]
    if confinement.why_not:
        return
    leaked = our_tables(confinement.machine_fd) - confinement.tables_before
    if leaked:
        pytest.exit(f"tests changed the machine's own ruleset: {sorted(leaked)}", returncode=1)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say at the top whether privileged tests will run, and on which kernels."""
    try:
        kernels = f"kernels of virtual machines: {chosen()}"
    except KernelError as err:
        raise pytest.UsageError(str(err)) from err
    confinement = config.stash[CONFINEMENT]
    if confinement.why_not:
        verb = "fail" if everything_is_required() else "are skipped"
        return [f"privileged tests: {verb} ({confinement.why_not})", kernels]
    where = f"run in {confinement.tests}, away from {confinement.machine}"
    return [f"privileged tests: {where}", kernels]
