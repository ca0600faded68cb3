r"""Image references: from ``ubuntu`` to the host that a pull of it contacts.

The rules are those of github.com/distribution/reference (``reference.go``, ``normalize.go``)::

    reference := [domain "/"] path [":" tag] ["@" digest]

* The part before the first ``/`` is a domain if it contains ``.`` or ``:`` or a capital letter, or
  is ``localhost``. Otherwise the image is on Docker Hub: domain ``docker.io``.
* ``index.docker.io`` is ``docker.io``; a one-word path there lives under ``library/``.
* 64 hexadecimal digits alone are an image ID, not a name.

Stricter than that library, because such a reference reaches no registry: a domain with an
underscore (the library then drops the domain), and one that is no host (``[:::]``, ``1.2``,
port 99999).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ramnet.core.names import Address, parse_address
from ramnet.errors import NameFault, ReferenceFault

DOCKER_HUB: Final = "docker.io"
# Docker Hub's registry is at this host; docker.io itself is only a name (moby/registry/config.go).
DOCKER_HUB_WIRE: Final = "registry-1.docker.io"
_LEGACY_HUB: Final = "index.docker.io"
_OFFICIAL: Final = "library/"

# RepositoryNameTotalLengthMax of distribution/reference; it counts the path without the domain.
MAX_PATH: Final = 255
# A host of 253 characters, a path, a tag of 128 and the longest digest fit with room to spare;
# bounds the work on hostile text.
MAX_TEXT: Final = 1024
_MAX_SHOWN: Final = 80

_COMPONENT: Final = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST: Final = rf"(?:{_COMPONENT}(?:\.{_COMPONENT})*|\[[a-fA-F0-9:]+\])"
_DOMAIN: Final = re.compile(rf"{_HOST}(?::[0-9]+)?")
_WORD: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH: Final = re.compile(rf"{_WORD}(?:/{_WORD})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_IMAGE_ID: Final = re.compile(r"[a-f0-9]{64}")
_LOWER_HEX: Final = re.compile(r"[a-f0-9]+")
# Digest algorithms registered by opencontainers/go-digest, with their length in hex digits.
_DIGESTS: Final = {"sha256": 64, "sha384": 96, "sha512": 128}


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised image reference; ``parse_reference`` makes it.

    ``domain`` is as written, with its port (``docker.io``, ``localhost:5000``, ``[::1]:5000``);
    ``path`` is the repository (``library/ubuntu``); ``digest`` includes its algorithm.
    """

    domain: str
    path: str
    tag: str | None = None
    digest: str | None = None

    @property
    def wire(self) -> Address:
        """The address that a client dials: ``registry-1.docker.io`` for Docker Hub."""
        return parse_address(DOCKER_HUB_WIRE if self.domain == DOCKER_HUB else self.domain)

    @property
    def wire_host(self) -> str:
        """The host of ``wire`` without port or brackets: a host name or an IP literal."""
        address = self.wire
        return str(address.pattern or address.ip)

    @property
    def wire_port(self) -> int | None:
        """The port of ``wire``; None if the reference names none (then 443)."""
        return self.wire.port

    @property
    def familiar(self) -> str:
        """The short form that people write: ``ubuntu:24.04``; it parses back to this reference.

        Unlike ``FamiliarString`` of distribution/reference, the domain stays where the short form
        would be read as something else (``docker.io/foo.bar/app``).
        """
        if self.domain != DOCKER_HUB:
            return str(self)
        name = self.path
        if name.startswith(_OFFICIAL) and name.count("/") == 1:
            name = name.removeprefix(_OFFICIAL)
        short = f"{name}{self._suffix}"
        if _split_domain(short) == (DOCKER_HUB, f"{self.path}{self._suffix}") and not (
            _IMAGE_ID.fullmatch(short)
        ):
            return short
        return str(self)

    @property
    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        return f"{tag}@{self.digest}" if self.digest is not None else tag

    def __str__(self) -> str:
        return f"{self.domain}/{self.path}{self._suffix}"


def parse_reference(text: str) -> Reference:
    """Return the reference that ``text`` says, as ``docker pull`` reads it.

    No tag is made up where there is none. Raises ``ReferenceFault``.
    """
    if not text:
        raise ReferenceFault("the image reference is empty", hint="write for example ubuntu:24.04")
    if len(text) > MAX_TEXT:
        raise ReferenceFault(
            f"image reference of {len(text)} characters is too long",
            hint=f"a repository has at most {MAX_PATH} characters, a tag 128",
        )
    if _IMAGE_ID.fullmatch(text):
        raise ReferenceFault(
            f"{_show(text)} is an image ID, not a reference", hint="write the name of the image"
        )
    if "://" in text:
        raise ReferenceFault(
            f"{_show(text)} is a URL", hint=f"leave out {_show(text[: text.index('://') + 3])}"
        )
    domain, remainder = _split_domain(text)
    name, at, digest = remainder.partition("@")
    path, colon, tag = name.partition(":")
    _check_domain(text, domain)
    _check_path(text, path)
    if colon:
        _check_tag(text, tag)
    if at:
        _check_digest(text, digest)
    return Reference(domain, path, tag if colon else None, digest if at else None)


def _split_domain(text: str) -> tuple[str, str]:
    """``splitDockerDomain`` of distribution/reference: the domain, and all that follows."""
    domain, slash, remainder = text.partition("/")
    if not slash:
        domain, remainder = DOCKER_HUB, text
    elif domain == _LEGACY_HUB:
        domain = DOCKER_HUB
    elif not (domain == "localhost" or "." in domain or ":" in domain or domain.lower() != domain):
        domain, remainder = DOCKER_HUB, text
    if domain == DOCKER_HUB and "/" not in remainder:
        remainder = f"{_OFFICIAL}{remainder}"
    return domain, remainder


def _check_domain(text: str, domain: str) -> None:
    if not _DOMAIN.fullmatch(domain):
        raise ReferenceFault(
            f"{_show(text)}: {_show(domain)} is not the host of a registry",
            hint="a host is a name, an IPv4 address or an IPv6 address in brackets,"
            " then perhaps a colon and a port",
        )
    try:
        parse_address(domain)
    except NameFault as err:
        raise ReferenceFault(f"{_show(text)}: {err.message}", hint=err.hint) from err


def _check_path(text: str, path: str) -> None:
    if _PATH.fullmatch(path):
        if len(path) > MAX_PATH:
            raise ReferenceFault(
                f"{_show(text)}: the repository name has {len(path)} characters",
                hint=f"it may have at most {MAX_PATH}",
            )
        return
    if path.lower() != path:
        raise ReferenceFault(
            f"{_show(text)}: the repository name must be lower case",
            hint=f"write {_show(path.lower())}",
        )
    raise ReferenceFault(
        f"{_show(text)}: {_show(path)} is not a repository name",
        hint="its parts are lower-case letters and digits, joined by '.', '_', '__' or hyphens,"
        " with '/' between the parts",
    )


def _check_tag(text: str, tag: str) -> None:
    if not _TAG.fullmatch(tag):
        raise ReferenceFault(
            f"{_show(text)}: {_show(tag)} is not a tag",
            hint="a tag has up to 128 letters, digits, '_', '.' and '-', and does not start with"
            " '.' or '-'",
        )


def _check_digest(text: str, digest: str) -> None:
    algorithm, colon, value = digest.partition(":")
    length = _DIGESTS.get(algorithm)
    if not colon or length is None:
        raise ReferenceFault(
            f"{_show(text)}: {_show(digest)} is not a digest",
            hint=f"a digest starts with one of {', '.join(_DIGESTS)} and a colon",
        )
    if len(value) != length or not _LOWER_HEX.fullmatch(value):
        raise ReferenceFault(
            f"{_show(text)}: the digest is malformed",
            hint=f"{algorithm} is followed by {length} lower-case hexadecimal digits",
        )


def _show(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...")
