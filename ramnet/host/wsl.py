"""WSL2: whether this is it, how ramnet is started there, and what can be seen of its network.

All is read from files below a root, ``/`` by default. What is to be changed is planned first, as
the whole new content of each file, and then carried out.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ramnet.core import wslconf
from ramnet.core.kernel import Release, parse_release
from ramnet.core.terms import TABLE
from ramnet.core.wslconf import COMMAND, SYSTEMD, WslConf, parse
from ramnet.errors import HostError, UnsupportedKernel
from ramnet.host.bpf import marks
from ramnet.host.cgroups import mount_point
from ramnet.host.elements import Elements
from ramnet.host.files import read_limited, replace_file

ROOT = Path("/")
HOOK = "/opt/ramnet/current/libexec/ramnet-boot"
CONF = "etc/wsl.conf"
BACKUP = "etc/wsl.conf.before-ramnet"
# What the hook is to run, see systemd/ramnet-boot.
SETTINGS = "etc/ramnet/wsl"
ENGINE = "engine-command"
EARLIER = "earlier-command"
EARLIER_ENGINE = "earlier-engine-command"
EARLIER_LINE = "earlier-line"
_ALL_SETTINGS = (ENGINE, EARLIER, EARLIER_ENGINE, EARLIER_LINE)

UNITS = ("ramnet-lock.service", "ramnet.service")
_UNIT_FOLDERS = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
_ENABLED = "etc/systemd/system/multi-user.target.wants/ramnet.service"
_SYSTEMD_RUNS = "run/systemd/system"  # sd_booted(3)

RESOLVER = "10.255.255.254"  # of DNS tunnelling, on lo
_MIRROR_DEVICE = "sys/class/net/loopback0"  # only there in mirrored mode
_WSLINFO = "usr/bin/wslinfo"
_WSLINFO_SECONDS = 3.0
MAX_CONF_BYTES = 256 * 1024  # WSL has no limit; nobody's is a thousandth of this

_ENGINES = re.compile(r"docker|containerd|podman|buildkit|nerdctl|cri-?o\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Found:
    """A distribution of WSL; ``evidence`` says by what it is known."""

    version: int
    release: str
    evidence: str


def detect(root: Path = ROOT) -> Found | None:
    """Tell whether this is a distribution of WSL; None where it is not.

    A container on WSL has the same kernel and is none. A distribution that was exported from a
    container has its mark, but also what WSL puts there.
    """
    release = _text(root / "proc/sys/kernel/osrelease").strip()
    lowered = release.lower()
    signs = [
        f"/{sign}"
        for sign in ("run/WSL", "proc/sys/fs/binfmt_misc/WSLInterop")
        if (root / sign).exists()
    ]
    contained = any((root / mark).exists() for mark in (".dockerenv", "run/.containerenv"))
    if contained and not signs:
        return None
    if "microsoft" in lowered:
        signs.insert(0, f"the kernel {release}")
        # WSL1 has no kernel of its own: it answers as 4.4.0-19041-Microsoft.
        version = 2 if "wsl2" in lowered or "microsoft-standard" in lowered else 1
        known = parse_release(release)
        if version == 1 and known is not None and known >= Release(4, 19, 0, ""):
            version = 2
        return Found(version, release, ", ".join(signs))
    # Whoever builds a kernel for WSL2 names it as they like.
    return Found(2, release, ", ".join(signs)) if signs else None


def require_wsl2(root: Path = ROOT) -> Found:
    """Return what was detected; ``UnsupportedKernel`` where it is not WSL2."""
    found = detect(root)
    if found is None:
        raise UnsupportedKernel(
            "this is not a distribution of WSL2",
            hint="elsewhere systemd starts ramnet: `systemctl status ramnet`",
        )
    if found.version == 1:
        raise UnsupportedKernel(
            f"this is WSL1 ({found.evidence}): there is no Linux kernel that could enforce",
            hint="`wsl --set-version <distribution> 2` on Windows makes it WSL2",
        )
    return found


# --- how it is started


class Start(StrEnum):
    """Who starts ramnet when the distribution starts."""

    SYSTEMD = "systemd"
    HOOK = "hook"
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class Boot:
    """How this distribution starts, and what of it is ramnet's.

    ``systemd`` is what wsl.conf says (None: nothing), ``running`` whether it runs. ``hook`` tells
    whether the ``[boot] command`` that counts is ours, ``ran`` when it did, in its own words.
    """

    conf: WslConf | None
    systemd: bool | None
    running: bool
    enabled: bool
    hook: bool
    ran: str
    engine_command: str
    earlier_command: str

    @property
    def by_systemd(self) -> bool:
        """Whether systemd runs the next start; where wsl.conf is silent, as it does now."""
        return self.running if self.systemd is None else self.systemd

    @property
    def start(self) -> Start:
        """Who starts ramnet."""
        if self.by_systemd and self.enabled:
            return Start.SYSTEMD
        return Start.HOOK if self.hook else Start.NOBODY

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is not as it seems."""
        found = [f"/{CONF}: {text}" for text in (self.conf.warnings if self.conf else ())]
        if self.systemd is not None and self.systemd != self.running:
            said = "starts" if self.systemd else "does not start"
            found.append(f"systemd {said} only after `wsl --terminate`: it is configured otherwise")
        if self.hook and not self.running and not self.ran:
            found.append("the hook has not run since this distribution started")
        return tuple(found)


def look(root: Path = ROOT) -> Boot:
    """Read how this distribution starts. Raises ``HostError`` for a wsl.conf that is no file."""
    data = _conf_data(root)
    conf = parse(data) if data is not None else None
    command = conf.first(COMMAND) if conf is not None else None
    settings = root / SETTINGS
    return Boot(
        conf=conf,
        systemd=conf.flag(SYSTEMD) if conf is not None else None,
        running=(root / _SYSTEMD_RUNS).is_dir(),
        enabled=os.path.lexists(root / _ENABLED),
        hook=command is not None and command.value == HOOK.encode(),
        ran=_text(root / "run/ramnet/booted").strip(),
        engine_command=_text(settings / ENGINE),
        earlier_command=_text(settings / EARLIER) or _text(settings / EARLIER_ENGINE),
    )


# --- what is to be changed


@dataclass(frozen=True, slots=True)
class Change:
    """The new content of one file, None for no file. ``path`` is below the root."""

    path: str
    before: bytes | None
    after: bytes | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What an installation, or its removal, does: files, then programs. ``notes`` is for people."""

    start: Start
    changes: tuple[Change, ...]
    programs: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def plan_install(root: Path = ROOT, engine_command: str | None = None) -> Plan:
    """Plan how ramnet is started with this distribution.

    ``engine_command`` starts the engines where there is no systemd; None keeps what was set before.
    Raises ``HostError`` where what is to be started is not installed.
    """
    boot = look(root)
    notes = list(boot.warnings)
    if boot.by_systemd:
        if not any((root / folder / UNITS[1]).exists() for folder in _UNIT_FOLDERS):
            raise HostError(f"{UNITS[1]} is not installed", hint="run `./bootstrap install` first")
        if engine_command:
            notes.append("systemd starts the engines by their units: --engine-command is not used")
        changes = _without_hook(root) if boot.hook else ()
        return Plan(Start.SYSTEMD, changes, (("systemctl", "enable", *UNITS),), tuple(notes))
    if not (root / HOOK.lstrip("/")).exists():
        raise HostError(f"{HOOK} is not installed", hint="run `./bootstrap install` first")
    changes, more = _with_hook(root, boot, engine_command)
    notes.append("it takes effect when the distribution starts anew: `wsl --terminate <name>`")
    return Plan(Start.HOOK, changes, (), (*more, *notes))


def _with_hook(
    root: Path, boot: Boot, engine_command: str | None
) -> tuple[tuple[Change, ...], list[str]]:
    before = _conf_data(root)
    data = before or b""
    notes = []
    new: dict[str, bytes | None] = {CONF: wslconf.set_command(data, HOOK)}
    if not boot.hook:
        new[BACKUP] = before
        found = boot.conf.first(COMMAND) if boot.conf is not None else None
        settings = dict.fromkeys((EARLIER, EARLIER_ENGINE, EARLIER_LINE), None)
        new |= {f"{SETTINGS}/{name}": value for name, value in settings.items()}
        if found is not None:
            command = found.value.decode("utf-8", "replace")
            engine = _ENGINES.search(command) is not None
            name = EARLIER_ENGINE if engine else EARLIER
            new[f"{SETTINGS}/{name}"] = found.value
            new[f"{SETTINGS}/{EARLIER_LINE}"] = data[found.start : found.end]
            where = "in the engines' cgroup, as it names one" if engine else "outside of it"
            notes.append(f"the [boot] command that was there is run after ours, {where}: {command}")
        if data.startswith(wslconf.BOM):
            notes.append("its byte order mark is taken away: from now on WSL reads what it says")
    if engine_command is not None:
        new[f"{SETTINGS}/{ENGINE}"] = engine_command.encode() or None
    elif not boot.engine_command:
        notes.append("no --engine-command: engines have to be started by `ramnet-boot engine`")
    return _changes(root, new), notes


def plan_uninstall(root: Path = ROOT) -> Plan:
    """Plan to take away what ``plan_install`` does; what others have changed since stays."""
    boot = look(root)
    programs = (("systemctl", "disable", *UNITS),) if boot.enabled else ()
    notes = []
    command = boot.conf.first(COMMAND) if boot.conf is not None else None
    if not boot.hook and command is not None and (root / SETTINGS).is_dir():
        notes.append(f"/{CONF} names another [boot] command by now, which stays")
    return Plan(boot.start, _without_hook(root), programs, tuple(notes))


def _without_hook(root: Path) -> tuple[Change, ...]:
    data = _conf_data(root)
    backup = _bytes(root / BACKUP)
    new: dict[str, bytes | None] = {f"{SETTINGS}/{name}": None for name in _ALL_SETTINGS}
    new[BACKUP] = None
    if data is not None:
        earlier = _bytes(root / SETTINGS / EARLIER_LINE)
        rest = wslconf.unset_command(data, HOOK, earlier)
        if rest != data and data == wslconf.set_command(backup or b"", HOOK):
            rest = backup or b""  # nobody has touched it since: octet for octet what it was
        # A file that was not there before, and holds nothing else by now, goes again.
        new[CONF] = rest if rest.strip() or backup is not None or rest == data else None
    return _changes(root, new)


def _changes(root: Path, new: dict[str, bytes | None]) -> tuple[Change, ...]:
    found = (Change(path, _bytes(root / path), after) for path, after in new.items())
    return tuple(change for change in found if change.before != change.after)


def carry_out(plan: Plan, root: Path = ROOT) -> None:
    """Make the changes of a plan, each file whole or not at all. Raises ``HostError``.

    wsl.conf is last: the hook finds its settings, and there is a copy, before it is named.
    """
    for change in sorted(plan.changes, key=lambda item: item.path == CONF):
        path = root / change.path
        try:
            if change.after is None:
                path.unlink(missing_ok=True)
            else:
                replace_file(path, change.after)
        except OSError as err:
            raise HostError(f"{path} cannot be written: {err.strerror}") from err
    with contextlib.suppress(OSError):  # missing, or it holds something that is not ours
        (root / SETTINGS).rmdir()
    for argv in plan.programs:
        _run(argv)


def _run(argv: tuple[str, ...]) -> None:
    try:
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
    except OSError as err:
        raise HostError(f"{argv[0]} cannot be run: {err.strerror}") from err
    if done.returncode:
        raise HostError(f"`{' '.join(argv)}` failed: {done.stderr.strip() or done.returncode}")


# --- what can be seen of the network


@dataclass(frozen=True, slots=True)
class Seen:
    """An answer, and by what it is known. ``value`` is None where nothing tells."""

    value: str | None
    because: str


def networking(root: Path = ROOT) -> Seen:
    """Say the networking mode: ``mirrored``, ``nat``, or what wslinfo calls it."""
    program = root / _WSLINFO
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        argv = [str(program), "--networking-mode"]
        done = subprocess.run(
            argv, check=False, capture_output=True, text=True, timeout=_WSLINFO_SECONDS
        )
        word = done.stdout.strip().lower()
        if done.returncode == 0 and word.isalpha():
            return Seen(word, "wslinfo says so")
    if (root / _MIRROR_DEVICE).exists():
        return Seen("mirrored", "there is the device loopback0")
    return Seen(None, "wslinfo does not tell, and there is no loopback0: nat, most likely")


def tunnelled(root: Path = ROOT) -> Seen:
    """Say whether DNS is tunnelled to Windows by an address on ``lo``."""
    asked = f"nameserver {RESOLVER}" in _text(root / "etc/resolv.conf").splitlines()
    local = RESOLVER in _text(root / "proc/net/fib_trie")
    if asked:
        because = f"/etc/resolv.conf names {RESOLVER}"
        return Seen("yes", because + ("" if local else ", which is not on lo"))
    if local:
        return Seen("unused", f"{RESOLVER} is on lo, and /etc/resolv.conf names others")
    return Seen("no", f"nothing names {RESOLVER}")


def engines_elsewhere(groups: Iterable[Path | str]) -> int:
    """Count processes of other distributions in the engines' cgroups.

    The kernel writes 0 for a process that the PID namespace of the reader does not show; cgroups
    are the same for all distributions (cgroups(7), pid_namespaces(7)).
    """
    return sum(_text(Path(group, "cgroup.procs")).split().count("0") for group in groups)


def strange_groups(paths: Iterable[str]) -> tuple[str, ...]:
    """Return the cgroups, below the mount, by which the rules in force do not know engines.

    The rules may be those of another distribution, which has been told other names. Raises
    ``HostError`` where nobody may look.
    """
    elements = Elements(TABLE)
    try:
        return tuple(path for path in paths if not _known(mount_point() / path, elements))
    finally:
        elements.close()


def _known(group: Path, elements: Elements) -> bool:
    level = len(group.relative_to(mount_point()).parts)
    try:
        # On a 64-bit kernel the inode number is the id that rules compare.
        if group.stat().st_ino in elements.groups(level):
            return True
        return any(one.mark is not None for one in marks(group))
    except OSError:  # there is no such cgroup
        return False


def _conf_data(root: Path) -> bytes | None:
    """Read wsl.conf; None when there is none. ``HostError`` for what is no ordinary file."""
    path = root / CONF
    return read_limited(str(path), MAX_CONF_BYTES) if os.path.lexists(path) else None


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _text(path: Path) -> str:
    return (_bytes(path) or b"").decode("utf-8", "replace")
