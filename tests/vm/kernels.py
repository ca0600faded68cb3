"""The kernels that virtual machines run, and which of them a run of the tests takes.

All four take long, so a run takes one: another for each commit, so that every kernel gets its
turn, and the same for the same commit, so that a red run is red again.
"""

from __future__ import annotations

import functools
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
VARIABLE = "RAMNET_VM_KERNEL"
ALL = "all"
THOROUGH = "thorough"  # beside the name of a kernel: what is dear is tried there as well


class KernelError(Exception):
    """``RAMNET_VM_KERNEL`` names no kernel."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """``name`` as in ``RAMNET_VM_KERNEL``; the suite of the userland, and that of the kernel."""

    name: str
    suite: str
    kernel_suite: str

    def __str__(self) -> str:
        return self.name

    @property
    def release(self) -> str:
        """What its version begins with; the newest has whatever it has."""
        return "" if self.suite == "sid" else f"{self.name}."

    def before(self, major: int, minor: int) -> bool:
        """Whether it is older than this version."""
        return self.suite != "sid" and tuple(map(int, self.name.split("."))) < (major, minor)


KERNELS = {
    kernel.name: kernel
    for kernel in (
        # The Python of bullseye (3.9) is too old: its kernel runs under the userland of bookworm.
        Kernel("5.10", "bookworm", "bullseye"),
        Kernel("6.1", "bookworm", "bookworm"),
        Kernel("6.12", "trixie", "trixie"),
        Kernel("newest", "sid", "sid"),
    )
}
WITHOUT_COMMIT = "6.1"  # a copy of the sources without their history


@dataclass(frozen=True, slots=True)
class Choice:
    """The kernels of a run, and why it is these."""

    kernels: tuple[Kernel, ...]
    reason: str
    thorough: bool = False
    """Whether the run may take its time: what is dear is tried as well."""

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.kernels))} ({self.reason})"


def choose(wanted: str, commit: str) -> Choice:
    """Choose by the value of the variable, which may be empty, and the hash of the commit.

    The variable lists names of kernels and perhaps ``thorough``, with commas, or is ``all``.
    """
    if wanted == ALL:
        return Choice(tuple(KERNELS.values()), f"{VARIABLE}={ALL}", thorough=True)
    words = wanted.split(",") if wanted else []
    names = [word for word in words if word != THOROUGH]
    if unknown := [name for name in names if name not in KERNELS]:
        known = ", ".join((*KERNELS, ALL, THOROUGH))
        raise KernelError(f"{VARIABLE} is {wanted!r}; {unknown[0]!r} is not one of {known}")
    thorough = THOROUGH in words
    if names:
        return Choice(tuple(KERNELS[name] for name in names), f"{VARIABLE}={wanted}", thorough)
    if not commit:
        reason = f"no commit here; {VARIABLE}={ALL} for all"
        return Choice((KERNELS[WITHOUT_COMMIT],), reason, thorough)
    kernel = list(KERNELS.values())[int(commit, 16) % len(KERNELS)]
    return Choice((kernel,), f"by commit {commit[:12]}; {VARIABLE}={ALL} for all", thorough)


@functools.cache
def chosen() -> Choice:
    """Choose by the environment and the commit of the checkout."""
    return choose(os.environ.get(VARIABLE, ""), _commit())


def _commit() -> str:
    # The checkout may belong to somebody else than root, who runs this: git refuses that by itself.
    argv = ["git", "-c", f"safe.directory={CHECKOUT}", "-C", str(CHECKOUT), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
