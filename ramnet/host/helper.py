"""Asks the helper for what needs more rights than the daemon has.

As a service the daemon, which reads what strangers send, may change this machine's rules and
cgroups, and nothing else. Trying out the kernel, marking the sockets of other processes and looking
into them is done by `ramnet helper`, a process without any connection to the outside
(``host/helping.py``). Where none is configured, as for the demo, the caller has the rights itself.
"""

from __future__ import annotations

import os
from typing import Any

from ramnet.core.enginefacts import Fact, Unreadable, unpack
from ramnet.core.kernel import Evidence, Feature
from ramnet.errors import ControlError, HostError
from ramnet.host.control import ask

# Names the directory of its socket.
ENVIRONMENT = "RAMNET_HELPER"
# Marking and looking take milliseconds, and the daemon's loop waits for them. The probe of the
# kernel makes programs and loads modules: seconds on a machine that has just been started.
SECONDS = 3.0
PROBE_SECONDS = 60.0


def configured() -> bool:
    """Whether the helper is to be asked."""
    return bool(os.environ.get(ENVIRONMENT))


def _call(verb: str, seconds: float = SECONDS, **arguments: Any) -> dict[str, Any]:
    try:
        return ask(os.environ[ENVIRONMENT], verb, seconds=seconds, **arguments)
    except (OSError, ControlError) as err:
        why = err.message if isinstance(err, ControlError) else err.strerror
        raise HostError(
            f"the helper does not do '{verb}': {why}", hint="see `systemctl status ramnet-helper`"
        ) from err


def kernel() -> dict[Feature, Evidence]:
    """Return what the probe of the kernel found. Raises ``HostError``."""
    found = _call("kernel", PROBE_SECONDS)["features"]
    return {
        Feature(name): Evidence(Feature(name), present=present, evidence=evidence)
        for name, present, evidence in found
    }


def make_groups() -> None:
    """Have the configured groups made where they are missing. ``HostError``."""
    _call("groups")


def mark() -> bool:
    """Have the sockets of the configured groups marked; False when they were. ``HostError``."""
    return bool(_call("mark")["fresh"])


def unmark() -> int:
    """Have the marks taken from the configured groups; how many there were. ``HostError``."""
    return int(_call("unmark")["removed"])


def holders(inodes: frozenset[str]) -> frozenset[int]:
    """Return the users as whom the processes act that hold these sockets. ``HostError``."""
    return frozenset(map(int, _call("holders", inodes=sorted(inodes))["users"]))


def facts() -> tuple[Fact, ...]:
    """Return what is known of this machine's engines; that nothing is, where nobody answers."""
    try:
        return unpack(_call("facts")["facts"])
    except HostError as err:
        return (Unreadable("engines", err.message),)
    except (ValueError, KeyError):  # a helper of another release, while it is exchanged
        return (Unreadable("engines", "the helper's answer is not understood"),)
