"""Loads and keeps the locked ruleset: engines are refused everything until the daemon is there."""

from __future__ import annotations

from pathlib import Path

from ramnet.core.catalog import load_catalog
from ramnet.core.config import Config, ScopeMode
from ramnet.core.lockdown import Locked, read_locked, refuses_nothing, render_locked
from ramnet.core.modes import choose, settings_for
from ramnet.core.scope import Group
from ramnet.core.terms import ENGINE, OUTPUT, TABLE, Settings
from ramnet.errors import HostError
from ramnet.host.cgroups import mount_point
from ramnet.host.clock import today
from ramnet.host.elements import Elements
from ramnet.host.files import replace_file
from ramnet.host.kernel import look_at_kernel
from ramnet.host.nft import Nft
from ramnet.host.scoping import Scoping

FILE_NAME = "locked.nft"


def locked_text(settings: Settings, *, audit: bool) -> str:
    """Render the locked ruleset for this machine; with ``audit`` it refuses nobody.

    Raises ``HostError``.
    """
    mount = str(mount_point()) if settings.scope.groups else ""
    return render_locked(settings, load_catalog(), today(), mount=mount, audit=audit)


def write_locked(state_dir: str, text: str) -> bool:
    """Keep the locked ruleset for the next boot; tell whether it is another one than before.

    A power cut leaves the one before or this one. Raises ``HostError``.
    """
    file = Path(state_dir, FILE_NAME)
    if _read(file) == text:
        return False
    try:
        replace_file(file, text.encode())
    except OSError as err:
        raise HostError(
            f"{file} cannot be written: {err.strerror}",
            hint="it is loaded at boot; --state-dir names a directory that root can write to",
        ) from err
    return True


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8", "replace")
    except OSError:
        return ""


def lock(config: Config, state_dir: str, *, load: bool = True) -> str:
    """See that rules are in force, and load the locked ones where none are; say what was done.

    Where engines are told by a mark, their sockets are marked as well: ``nft`` cannot do that. With
    ``load`` False only the file in ``state_dir`` is written, for the next boot. A file that cannot
    be written keeps nobody from being locked. Raises ``UnsupportedKernel`` or ``HostError``.
    """
    kept = read_locked(_read(Path(state_dir, FILE_NAME)))
    if load and _in_force():
        if kept is not None and kept.scope.precise:
            _know_groups(config, kept)
        return "rules are in force"
    kernel = look_at_kernel()
    modes = choose(config, kernel.decision, kernel.evidence, kernel.release)
    scoping = Scoping(modes.scope, config.scope.cgroups, config.mark.engine)
    try:
        settings = settings_for(config, modes, scoping.groups, kernel.evidence)
        audit = kept is not None and kept.audit
        text = locked_text(settings, audit=audit)
        if not load:
            changed = write_locked(state_dir, text)
            return "the locked ruleset was written" if changed else "nothing has changed"
        scoping.prepare()
        _create(text)
    finally:
        scoping.close()
    said = "engines are locked: they are refused everything until `ramnet run` is ready"
    if audit:
        said = "nobody is refused anything: the policy in force was one that only watches"
    elif refuses_nothing(settings):
        said = f'nobody is refused anything: {modes.scope_because}, and [scope] weak is "catalog"'
    try:
        write_locked(state_dir, text)
    except HostError as err:
        said = f"{said} ({err.message})"
    return said


def _in_force() -> bool:
    elements = Elements(TABLE)
    try:
        _, chains = elements.identity() or (0, ())
    finally:
        elements.close()
    return {OUTPUT, ENGINE} <= {name for name, uses in chains if uses}


def _know_groups(config: Config, kept: Locked) -> None:
    """Have the rules in force know the engines' cgroups as they are now.

    Nothing is taken from them: they may be of a daemon with an earlier configuration.
    """
    scoping = Scoping(kept.scope, config.scope.cgroups, kept.mark)
    elements = Elements(TABLE)
    try:
        if kept.scope is ScopeMode.MARK:
            scoping.feed(elements)
        for group in scoping.groups if kept.scope is ScopeMode.CGROUP else ():
            _add(elements, group)
    finally:
        elements.close()
        scoping.close()


def _add(elements: Elements, group: Group) -> None:
    try:
        elements.feed_groups(group.level, [group.ident])
    except HostError:
        if elements.groups(group.level):
            raise
        # There is no such set: the rules in force are of another scope than what was kept.


def _create(text: str) -> None:
    """Load the table; the daemon may have been faster."""
    try:
        Nft().apply(text)
    except HostError:
        if not _in_force():
            raise
