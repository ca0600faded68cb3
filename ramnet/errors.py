"""The few exception types of the project.

Every error that a person may see carries a ``hint``: what to do about it. Only the command line
turns an error into an exit code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class RamnetError(Exception):
    """Base of all errors that ramnet raises on purpose.

    ``message`` says what is wrong in one line; ``hint`` says what to do (may be empty).
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class NameFault(RamnetError):
    """A host name, host pattern or registry address is not acceptable."""


class ReferenceFault(RamnetError):
    """An image reference does not follow the grammar of distribution/reference."""


class WireError(RamnetError):
    """Bytes that came off the wire do not parse; ``where`` names the part that failed."""

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.where = where


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a policy or configuration file.

    ``place`` is the path of the key (``registry[1].address``); ``line`` counts from 1 and is
    None where the file format does not tell.
    """

    place: str
    line: int | None
    message: str
    hint: str

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        place = f"{self.place}: " if self.place else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}{place}{self.message}{hint}"


class PolicyError(RamnetError):
    """A policy or configuration file is not valid; ``faults`` lists everything wrong with it."""

    def __init__(self, source: str, faults: Iterable[Fault]) -> None:
        self.source = source
        self.faults = tuple(faults)
        count = len(self.faults)
        noun = "fault" if count == 1 else "faults"
        lines = "\n".join(f"  {fault}" for fault in self.faults)
        super().__init__(f"{source}: {count} {noun}\n{lines}")


class UnsupportedKernel(RamnetError):
    """The running kernel cannot do what enforcement needs."""


class HostError(RamnetError):
    """A call to the kernel or to another program failed; the message names the call."""


class OccupiedError(HostError):
    """Another ramnet enforces in this network namespace."""


class ControlError(RamnetError):
    """The control socket of the daemon refused a request, or nobody answers on it."""


class LabError(RamnetError):
    """The network-namespace lab could not be built or used."""
