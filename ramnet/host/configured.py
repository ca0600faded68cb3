"""Finds the settings that name registries: the engines', and those of the people who use them."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from ramnet.core.clientfiles import docker_config, dockerfile
from ramnet.core.enginefacts import Fact
from ramnet.core.enginemirrors import buildkitd_toml, registries_conf
from ramnet.errors import HostError
from ramnet.host.conffiles import facts_of
from ramnet.host.engineconf import engine_facts

# Below a home: Docker's client, podman and its friends, rootless and buildx's own BuildKit.
_HOME_FILES: Final = (
    (".docker/config.json", docker_config),
    (".config/containers/auth.json", docker_config),
    (".config/containers/registries.conf", registries_conf),
    (".config/buildkit/buildkitd.toml", buildkitd_toml),
    (".docker/buildx/buildkitd.default.toml", buildkitd_toml),
)
# Where podman login writes for root (containers-auth.json(5)).
_ROOT_LOGINS: Final = "run/containers/0/auth.json"
_DOCKERFILES: Final = ("Dockerfile", "Containerfile")
_DOCKER_CONFIG: Final = "DOCKER_CONFIG"
_SUDO_USER: Final = "SUDO_USER"


def configured_facts(
    homes: Iterable[Path] = (), dockerfiles: Iterable[Path] = (), *, root: Path = Path("/")
) -> tuple[Fact, ...]:
    """Collect what the settings of the machine below ``root`` say of registries.

    Homes and Dockerfiles are paths on that machine. Raises nothing.
    """
    facts = list(engine_facts(root))
    for home in homes:
        for name, parse in _HOME_FILES:
            facts += facts_of(root, _below(home / name), parse)
    facts += facts_of(root, _ROOT_LOGINS, docker_config)
    for path in dockerfiles:
        facts += facts_of(root, _below(path), dockerfile)
    given = os.environ.get(_DOCKER_CONFIG)
    if given:
        facts += facts_of(root, _below(Path(given).absolute() / "config.json"), docker_config)
    return tuple(dict.fromkeys(facts))


def homes_of(given: str | None) -> tuple[Path, ...]:
    """Return the homes to look into: the caller's, that of who called sudo, and the given one.

    Raises ``HostError`` when the given one is no folder.
    """
    return tuple(dict.fromkeys(_homes(given)))


def _homes(given: str | None) -> Iterator[Path]:
    with suppress(KeyError):  # a user without an entry in passwd(5)
        yield Path(pwd.getpwuid(os.geteuid()).pw_dir)
    with suppress(KeyError, ValueError):  # ValueError: a NUL in the name
        yield Path(pwd.getpwnam(os.environ[_SUDO_USER]).pw_dir)
    if given is not None:
        if not Path(given).is_dir():
            raise HostError(f"{given} is not a folder", hint="--home names the home of a user")
        yield Path(given).absolute()


def dockerfiles_of(given: str | None) -> tuple[Path, ...]:
    """Return the Dockerfiles to look into: the given one, else those of the current folder.

    Raises ``HostError`` when the given one is not there.
    """
    if given is not None:
        if not Path(given).exists():
            raise HostError(f"{given} does not exist", hint="--dockerfile names a Dockerfile")
        return (Path(given).absolute(),)
    return tuple(Path(name).absolute() for name in _DOCKERFILES)


def _below(path: Path) -> str:
    return str(path).lstrip("/")
