"""Installs policies, and keeps the trial of one: the daemon puts the old file back by itself.

Who installs a policy is not the daemon: it has the rights of the person who runs it. What the
daemon needs to undo it is a rename in the policy's folder, and what it knows is in its state
directory before the new file is in place: neither the terminal nor a crash of either can lose it.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ramnet.core.textfile import MAX_FILE_BYTES
from ramnet.core.trial import (
    BEFORE_TRIAL,
    MAX_SECONDS,
    MAX_STATE,
    MIN_SECONDS,
    Outcome,
    Trial,
    is_path,
    judge,
    read_trial,
    write_trial,
)
from ramnet.errors import ControlError, HostError
from ramnet.host.clock import boot_id, since_boot
from ramnet.host.files import file_mark, put_back, read_limited, replace_file

STATE_FILE: Final = "trial.json"
#: Behind the name of a policy: the file that was there before.
BEFORE: Final = ".before"

Tell = Callable[[str], None]


def digest_of(data: bytes) -> str:
    """Digest the octets of a file, as ``sha256:`` and hexadecimal digits."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def backup_of(policy: str, behind: str = BEFORE) -> Path:
    """Return where the file before is kept: beside the policy itself, not beside a link to it."""
    path = Path(policy).resolve()
    return path.with_name(path.name + behind)


def keep_before(policy: str, data: bytes, behind: str = BEFORE) -> Path:
    """Keep what the policy is now beside it, with its owner and mode. Raises ``HostError``.

    A link in its place is replaced, not followed: others may write in that folder.
    """
    backup = backup_of(policy, behind)
    _written(backup, data, Path(policy))
    return backup


def install(policy: str, data: bytes) -> None:
    """Replace a policy in one step; a link to it stays one. Raises ``HostError``."""
    _written(Path(policy), data, None)


def pending_trial(policy: str, state_dir: str) -> Trial | None:
    """Return the trial of a policy that the next daemon would go on with, for who has none to ask.

    What cannot be read is none.
    """
    try:
        trial = read_trial(read_limited(str(Path(state_dir, STATE_FILE)), MAX_STATE))
    except HostError:
        return None
    outcome, _ = judge(trial, _digest_at(policy), boot_id(), since_boot())
    ours = trial.policy == str(Path(policy).resolve())
    return trial if ours and outcome is not Outcome.DROP else None


def _digest_at(path: str) -> str | None:
    try:
        return digest_of(read_limited(path, MAX_FILE_BYTES))
    except HostError:
        return None


def _written(path: Path, data: bytes, like: Path | None) -> None:
    try:
        replace_file(path, data, like=like, follow=like is None)
    except PermissionError as err:
        hint = "run it as the owner of the file, or with sudo"
        raise HostError(f"{path} cannot be written: {err.strerror}", hint=hint) from err
    except OSError as err:
        raise HostError(f"{path} cannot be written: {err.strerror}") from err


@dataclass(frozen=True, slots=True)
class _Look:
    """The digest of a file, and the mark by which one knows that it has not changed since."""

    mark: object
    digest: str | None


class Trials:
    """The one trial that may be pending; all of it may be called from any thread.

    ``tell`` gets a line when a trial ends otherwise than by being confirmed.
    """

    def __init__(self, policy: str, state_dir: str, tell: Tell) -> None:
        self.problem = ""
        self._policy = policy
        self._state = Path(state_dir, STATE_FILE)
        self._tell = tell
        self._lock = threading.Lock()
        self._boot = boot_id()
        self._look: _Look | None = None
        self._trial: Trial | None = None
        self._recall()

    @property
    def plain(self) -> dict[str, Any] | None:
        """The pending trial as JSON values."""
        trial = self._trial
        if trial is None:
            return None
        left = trial.left(since_boot())
        return {"digest": trial.digest, "deadline": trial.deadline, "seconds_left": left}

    def check(self) -> None:
        """Put the old policy back where it is time for that."""
        with self._lock:
            if self._trial is None:
                return
            outcome, why = judge(self._trial, self._current(), self._boot, since_boot())
            if outcome is Outcome.RESTORE:  # nobody's change is to be lost: look once more
                self._look = None
                outcome, why = judge(self._trial, self._current(), self._boot, since_boot())
            try:
                if outcome is Outcome.RESTORE:
                    self._restore(self._trial, why)
                elif outcome is Outcome.DROP:
                    trial = self._trial
                    self._end()
                    # Put in place while this looked: who did so was promised that it is undone.
                    if trial.left(since_boot()) == 0 and self._current() == trial.digest:
                        self._restore(trial, "it was put in place too late")
                        return
                    self._tell(f"the trial of a policy has ended, and nothing is put back: {why}")
            except HostError as err:
                self._trouble(err.message)

    def begin(self, request: Any) -> dict[str, Any]:
        """Promise to undo what is about to be installed. Raises ``ControlError``, ``HostError``.

        The request has the ``policy`` file, the ``digest`` that it will have, that of what is kept
        ``before`` it, and the ``span`` of the trial in seconds.
        """
        policy, digest, before, seconds = (
            request.get(key) for key in ("policy", "digest", "before", "span")
        )
        texts = all(isinstance(text, str) for text in (policy, digest, before))
        texts = texts and is_path(policy)
        if not texts or type(seconds) is not int or not MIN_SECONDS <= seconds <= MAX_SECONDS:
            raise ControlError("the request is not understood")
        with self._lock:
            if self._trial is not None:
                raise ControlError(
                    "another policy is on trial",
                    hint="`ramnet policy confirm` keeps it; else wait until it is undone",
                )
            resolved = Path(self._policy).resolve()
            if str(Path(policy).resolve()) != str(resolved):
                raise ControlError(
                    f"the daemon follows {self._policy}, not {policy}",
                    hint=f"only that one can be tried: --policy {self._policy}",
                )
            backup = backup_of(self._policy, BEFORE_TRIAL)
            if _digest_at(str(resolved)) != before or _digest_at(str(backup)) != before:
                raise ControlError("the policy was changed by somebody else", hint="try again")
            if not os.access(resolved.parent, os.W_OK):
                raise ControlError(
                    f"the daemon could not put the old policy back: it cannot write to"
                    f" {resolved.parent}",
                    hint="its unit needs ReadWritePaths= for that folder; or leave out --confirm",
                )
            self._trial = self._promise(
                Trial(
                    policy=str(resolved),
                    digest=digest,
                    backup=str(backup),
                    before=before,
                    boot=self._boot,
                    until=since_boot() + seconds,
                    deadline=time.time() + seconds,
                )
            )
            self._look = None
        return {"trial": self.plain}

    def confirm(self) -> dict[str, Any]:
        """Keep the policy on trial. Raises ``ControlError`` or ``HostError``."""
        with self._lock:
            trial = self._pending()
            self._look = None
            if self._current() != trial.digest:
                raise ControlError(
                    "the policy on trial is not the one that is in place",
                    hint="it was changed meanwhile: what is there now stays",
                )
            self._end()
        return {"confirmed": trial.digest}

    def revert(self) -> dict[str, Any]:
        """Put the old policy back now. Raises ``ControlError`` or ``HostError``."""
        with self._lock:
            trial = self._pending()
            self._look = None
            restored = self._current() == trial.digest
            if restored:
                self._restore(trial, "that was asked for")
                if self.problem:
                    raise HostError(self.problem)
            else:
                self._end()
        return {"restored": restored}

    def _pending(self) -> Trial:
        if self._trial is None:
            raise ControlError("no policy is on trial", hint="it was confirmed or undone before")
        return self._trial

    def _recall(self) -> None:
        """Go on with the trial that an earlier daemon kept."""
        if not self._state.exists():
            return
        try:
            trial = read_trial(read_limited(str(self._state), MAX_STATE))
        except HostError as err:
            self.problem = f"{self._state}: {err.message}; nothing will be put back"
            self._tell(self.problem)
            return
        if trial.policy == str(Path(self._policy).resolve()):
            self._trial = trial

    def _promise(self, trial: Trial) -> Trial:
        try:
            replace_file(self._state, write_trial(trial))
        except OSError as err:
            raise HostError(f"{self._state} cannot be written: {err.strerror}") from err
        self.problem = ""
        return trial

    def _current(self) -> str | None:
        """Digest the policy file, unless it is as it was at the last look."""
        mark = file_mark(self._policy)
        if self._look is None or self._look.mark != mark:
            self._look = _Look(mark, _digest_at(self._policy))
        return self._look.digest

    def _restore(self, trial: Trial, why: str) -> None:
        """Put the file before back; where that fails, say so once and try again later."""
        if _digest_at(trial.backup) != trial.before:
            self._end()
            self._trouble(f"the policy on trial stays ({why}): {trial.backup} is not what was kept")
            return
        try:
            put_back(Path(trial.backup), Path(trial.policy))
        except OSError as err:
            self._trouble(f"{trial.policy} cannot be put back: {err.strerror}")
            return
        self._end()
        self._tell(f"the policy before is back: {why}")

    def _trouble(self, problem: str) -> None:
        if problem != self.problem:
            self._tell(problem)
        self.problem = problem

    def _end(self) -> None:
        """Forget the trial, for the next start as well."""
        try:
            self._state.unlink(missing_ok=True)
        except OSError as err:
            raise HostError(f"{self._state} cannot be removed: {err.strerror}") from err
        self._trial, self._look, self.problem = None, None, ""
