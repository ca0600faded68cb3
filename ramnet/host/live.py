"""The live probe: do the rules tell an engine's socket from any other, as a packet shows?

That a rule was loaded proves nothing: the id of a cgroup may be old, its level off by one, a mark
never set. So a datagram is sent from a socket of the class, and the kernel's own count of it is
read. It is addressed to this machine, and the rules drop it at output.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from ramnet.core.scope import PROBE_PORT, PROBED
from ramnet.errors import HostError
from ramnet.host.cgroups import mount_point, temporary_group
from ramnet.host.elements import Elements

PROBE_ADDRESS = "127.0.0.1"
_DATAGRAM = b"ramnet"
# A child that starts and sends takes some 20 ms; a machine that needs this long has no time to.
CHILD_SECONDS = 10.0
# Other rules may refuse the datagram outside while somebody of the class knocks; not three times.
ATTEMPTS = 3

# It joins first: a socket belongs to the cgroup in which it was made. The answer is an errno.
_CHILD = """
import socket, sys
place, address, port, data = sys.argv[1:]
try:
    step = "joining the cgroup"
    with open(place + "/cgroup.procs", "w") as procs:
        procs.write("0")
    step = "making a socket"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        step = "sending"
        sender.sendto(data.encode(), (address, int(port)))
    print("sent")
except PermissionError as err:
    print("refused" if step == "sending" else step + ": " + err.strerror)
except OSError as err:
    print(step + ": " + err.strerror)
"""


def send_probe(cgroup: Path | None) -> bool:
    """Send the datagram from a socket made in a child of ``cgroup``, or in this process.

    In a child group, because a group with controllers for its children may hold no process itself.
    True when a rule refused it (EPERM), False when it was sent. Raises ``HostError`` when it could
    not be tried.
    """
    if cgroup is None:
        return _send_here()
    with temporary_group(cgroup) as place:
        return _send_in(place)


def _send_here() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto(_DATAGRAM, (PROBE_ADDRESS, PROBE_PORT))
        except PermissionError:
            return True
        except OSError as err:
            raise _trouble(f"sending: {err.strerror}") from err
    return False


def _send_in(place: Path) -> bool:
    # A child that is no fork of ours: this process has threads. It is in our network namespace.
    argv = [sys.executable, "-I", "-S", "-c", _CHILD]
    argv += [str(place), PROBE_ADDRESS, str(PROBE_PORT), _DATAGRAM.decode()]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CHILD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as err:  # such as in a group that is frozen
        raise _trouble(f"its process took longer than {CHILD_SECONDS:.0f} s") from err
    except OSError as err:
        raise _trouble(f"starting {sys.executable}: {err.strerror}") from err
    said = done.stdout.strip()
    if said not in ("sent", "refused"):
        said = said or done.stderr.strip().rpartition("\n")[2]
        raise _trouble(said or f"its process ended with {done.returncode}")
    return said == "refused"


def _trouble(what: str) -> HostError:
    return HostError(
        f"the live probe could not be sent: {what}",
        hint="it needs lo up, and a cgroup that takes processes (cgroup.type `domain`)",
    )


def live_probe(elements: Elements, cgroup: Path | None) -> str:
    """Probe from inside the class and from outside; return what is wrong, or nothing.

    Inside is a child of ``cgroup``, outside is this process. With None every socket of this process
    is of the class (scopes ``uid`` and ``netns``), and there is no outside to try.
    """
    try:
        moved, refused = _moved(elements, cgroup)
        if not moved:
            return _missed(elements, cgroup, refused=refused)
        if not refused:
            return "the rules counted the datagram of an engine's socket, but did not stop it"
        # The count alone is not proof: others of the class may knock, as often as they like.
        if cgroup is not None and all(all(_moved(elements, None)) for _ in range(ATTEMPTS)):
            return _too_wide(cgroup)
    except HostError as err:
        return f"{err.message} ({err.hint})" if err.hint else err.message
    return ""


def _moved(elements: Elements, cgroup: Path | None) -> tuple[bool, bool]:
    """Send one datagram: whether the counter moved, and whether the datagram was refused."""
    before = elements.counters().get(PROBED, 0)
    refused = send_probe(cgroup)
    return elements.counters().get(PROBED, 0) > before, refused


def _missed(elements: Elements, cgroup: Path | None, *, refused: bool) -> str:
    if PROBED not in elements.counters():
        return f"the table or its counter '{PROBED}' is not there"
    whose = "of ramnet itself" if cgroup is None else f"made in cgroup {cgroup}"
    if refused:
        return f"other rules refused the datagram of a socket {whose} before ours saw it"
    return f"the rules do not take a socket {whose} for an engine's"


def _too_wide(cgroup: Path) -> str:
    own = _own_group()
    if own.is_relative_to(cgroup):
        return f"ramnet itself runs in an engine's cgroup, {own}: start it in another one"
    return f"the rules take a socket of ramnet itself, made in cgroup {own}, for an engine's"


def _own_group() -> Path:
    """Return the cgroup of this process, as a directory of the v2 mount (cgroups(7))."""
    lines = Path("/proc/self/cgroup").read_text("utf-8", "replace").splitlines()
    below = next((line[len("0::/") :] for line in lines if line.startswith("0::/")), "")
    return mount_point() / below
