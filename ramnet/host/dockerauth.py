"""The logins that Docker has kept: ``config.json``, and the helper programs that it names.

A helper is somebody's program. It runs as the owner of the file that names it, never with more
rights than that, with one line of input and bounds on what it takes and gives.
"""

from __future__ import annotations

import base64
import json
import os
import pwd
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ramnet.core.challenge import Credentials
from ramnet.core.enginefacts import printable
from ramnet.core.reference import DOCKER_HUB
from ramnet.errors import HostError
from ramnet.host.files import read_owned

# Logins to a few registries; a token has some kB.
MAX_CONFIG: Final = 1024 * 1024
MAX_SECRET: Final = 64 * 1024
# A helper may ask a cloud, or a keychain that has to be opened.
HELPER_SECONDS: Final = 30.0
# Where a helper of another user is looked for: root's own PATH may lead where only root may go.
SAFE_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
# docker/docker-credential-helpers, credentials/error.go.
_NOT_FOUND: Final = "credentials not found in native keychain"
# By what Docker Hub is known there (docker/cli, cli/config/configfile).
HUB_KEY: Final = "https://index.docker.io/v1/"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# A helper that says so gives an identity token, not a password.
_TOKEN_USER: Final = "<token>"  # noqa: S105 - a marker


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose configuration it is; ``uid`` None: our own, so nothing has to be given up."""

    home: Path
    uid: int | None = None
    gid: int = 0
    name: str = ""


def docker_config() -> Path:
    """Return where the configuration is of whoever asks: under sudo, of the person who did."""
    if folder := os.environ.get("DOCKER_CONFIG"):
        return Path(folder) / "config.json"
    home = Path.home()
    if os.geteuid() == 0 and (uid := os.environ.get("SUDO_UID", "")).isdigit():
        with suppress(KeyError):
            home = Path(pwd.getpwuid(int(uid)).pw_dir)
    return home / ".docker" / "config.json"


def credentials_for(registry: str, path: Path) -> Credentials | None:
    """Return the login for a registry (``docker.io``, ``registry.example:5000``), None without one.

    Raises ``HostError`` for a file or helper that cannot be used.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as err:
        raise HostError(f"{path} cannot be read: {err.strerror}") from err
    # Whose helper it is, is asked of the file that was read: a path may lead elsewhere by then.
    data, uid = read_owned(str(path), MAX_CONFIG)
    config = _table(_parsed(data, str(path)))
    keys = _keys(registry)
    helpers = _table(config.get("credHelpers"))
    helper = next((helpers[key] for key in keys if key in helpers), config.get("credsStore"))
    if isinstance(helper, str) and helper:
        return _from_helper(helper, keys, path, uid)
    auths = _table(config.get("auths"))
    for key, entry in auths.items():
        if key in keys or _host(key) in keys:
            return _from_entry(_table(entry), str(path))
    return None


def _keys(registry: str) -> tuple[str, ...]:
    return (HUB_KEY,) if registry == DOCKER_HUB else (registry, f"https://{registry}")


def _host(key: str) -> str:
    """``ConvertToHostname`` of docker/cli: old versions wrote URLs."""
    return key.partition("://")[2].partition("/")[0] if "://" in key else key.partition("/")[0]


def _from_entry(entry: Mapping[str, Any], source: str) -> Credentials | None:
    if isinstance(token := entry.get("identitytoken"), str) and token:
        return _checked(_TOKEN_USER, token, source)
    auth = entry.get("auth")
    if not isinstance(auth, str) or not auth:
        return None
    try:
        user, colon, secret = base64.b64decode(auth, validate=True).decode().partition(":")
    except ValueError as err:  # neither base64 nor UTF-8, or not even ASCII
        raise HostError(f"{source}: a login in it is not base64") from err
    return _checked(user, secret.rstrip("\0"), source) if colon else None


def _checked(user: str, secret: str, source: str) -> Credentials:
    if len(user) + len(secret) > MAX_SECRET:
        raise HostError(f"{source}: a login of more than {MAX_SECRET} characters")
    try:
        f"{user}{secret}".encode()
    except UnicodeEncodeError as err:  # JSON can write half a character
        raise HostError(f"{source}: a login that is not text") from err
    if user == _TOKEN_USER:
        return Credentials("", secret, identity=True)
    return Credentials(user, secret)


def _from_helper(name: str, keys: tuple[str, ...], config: Path, uid: int) -> Credentials | None:
    if not _NAME.fullmatch(name):
        raise HostError(f"{config}: {printable(name)!r} is not the name of a credential helper")
    for key in keys:
        answer = _run(f"docker-credential-{name}", key, config, uid)
        if answer is not None:
            user, secret = answer.get("Username"), answer.get("Secret")
            if isinstance(user, str) and isinstance(secret, str):
                return _checked(user, secret, name)
            raise HostError(f"docker-credential-{name} gives no Username and Secret")
    return None


def _run(program: str, key: str, config: Path, uid: int) -> Mapping[str, Any] | None:
    owner = _owner(config, uid)
    identity: dict[str, Any] = {}
    environment = dict(os.environ)
    if owner.uid is not None:
        identity = {"user": owner.uid, "group": owner.gid, "extra_groups": []}
        kept = ("LANG", "TERM")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        environment |= {
            "PATH": SAFE_PATH,
            "HOME": str(owner.home),
            "USER": owner.name,
            "LOGNAME": owner.name,
        }
    try:
        with subprocess.Popen(
            [program, "get"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=environment,
            cwd="/",
            start_new_session=True,
            **identity,
        ) as helper:
            said = _talk(helper, key.encode())
    except OSError as err:
        raise HostError(
            f"{program} cannot be run: {err.strerror}",
            hint=f"{config} names it; is it installed, and on the PATH?",
        ) from err
    if said is None or helper.returncode == -signal.SIGKILL:
        limits = f"{HELPER_SECONDS:.0f} s and {MAX_SECRET} bytes"
        raise HostError(f"{program} has no answer within {limits}")
    if helper.returncode:
        words = said.decode("utf-8", "replace").strip()
        if _NOT_FOUND in words:
            return None
        raise HostError(
            f"{program}: {printable(words) or f'status {helper.returncode}'}",
            hint=f"try `echo {key} | {program} get`",
        )
    return _table(_parsed(said, program))


def _talk(helper: subprocess.Popen[bytes], line: bytes) -> bytes | None:
    """Say one line to a helper and return what it answers; None where that passed a bound.

    Its group is killed then, and nobody waits for the end of the pipe: what it started may have
    left the group, and hold that.
    """
    assert helper.stdin is not None  # noqa: S101 - both are pipes
    assert helper.stdout is not None  # noqa: S101
    end = time.monotonic() + HELPER_SECONDS
    with suppress(BrokenPipeError):  # it may know without being told
        helper.stdin.write(line)
    helper.stdin.close()
    said = b""
    while len(said) <= MAX_SECRET:
        ready, _, _ = select.select([helper.stdout], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            break
        piece = os.read(helper.stdout.fileno(), MAX_SECRET)
        if not piece:
            with suppress(subprocess.TimeoutExpired):
                helper.wait(max(0.0, end - time.monotonic()))
                return said
            break
        said += piece
    with suppress(ProcessLookupError):
        os.killpg(helper.pid, signal.SIGKILL)
    return None


def _owner(config: Path, uid: int) -> Owner:
    """Say as whom a helper runs: as the one who wrote its name into the file, its owner."""
    if os.geteuid() != 0 or uid == 0:
        return Owner(Path.home())
    try:
        person = pwd.getpwuid(uid)
    except KeyError as err:
        raise HostError(f"{config} belongs to user {uid}, who is not known here") from err
    return Owner(Path(person.pw_dir), uid, person.pw_gid, person.pw_name)


def _parsed(data: bytes, source: str) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as err:
        raise HostError(f"{source}: not JSON") from err


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
