"""What a registry says that an image is made of: manifests, and indexes of them by platform.

The formats are those of the OCI image specification and of Docker's schema 2, which it came from.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ramnet.core.enginefacts import printable
from ramnet.errors import WireError

_OCI: Final = "application/vnd.oci.image"
_DOCKER: Final = "application/vnd.docker.distribution.manifest"
MANIFESTS: Final = (f"{_OCI}.manifest.v1+json", f"{_DOCKER}.v2+json")
INDEXES: Final = (f"{_OCI}.index.v1+json", f"{_DOCKER}.list.v2+json")
# No "*/*": registry servers of version 2 then convert to schema 1.
ACCEPT: Final = ", ".join((*INDEXES, *MANIFESTS))

# distribution/registry/handlers/manifests.go: what a registry itself takes.
MAX_MANIFEST: Final = 4 * 1024 * 1024
# 127 is the most that Docker can mount (moby, layer/layer_store.go); indexes have some 20.
MAX_PARTS: Final = 1024
MAX_URLS: Final = 16
# Platforms in a message; no image has been seen with many more.
_NAMED: Final = 10
_PLATFORM: Final = 40  # characters of one: linux/arm64/v8 has 14

_DIGESTS: Final = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX: Final = re.compile(r"[a-f0-9]+")
# uname(2) and what Go calls it (runtime.GOARCH), with the variant that containerd adds.
_MACHINES: Final[Mapping[str, tuple[str, str]]] = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "loongarch64": ("loong64", ""),
}


@dataclass(frozen=True, slots=True)
class Platform:
    """For what an image is made."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class Part:
    """A descriptor: something that is fetched by its digest.

    ``urls`` are where a foreign layer is fetched from instead of the registry.
    """

    digest: str
    media_type: str
    urls: tuple[str, ...] = ()
    platform: Platform | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image: its configuration and layers, in their order."""

    config: Part
    layers: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """The manifests of an image for several platforms."""

    manifests: tuple[Part, ...]


def platform_of(machine: str) -> Platform:
    """Return the platform of Linux images that a machine runs; ``machine`` is uname's."""
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform("linux", architecture, variant)


def read_manifest(media_type: str, body: bytes) -> Manifest | Index:
    """Return what a registry answered. Raises ``WireError``.

    Where ``media_type`` says nothing, the document's own does, and then its keys.
    """
    if len(body) > MAX_MANIFEST:
        raise WireError("the manifest is larger than any registry takes", where="manifest")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as err:
        raise WireError("the manifest is not JSON", where="manifest") from err
    if not isinstance(document, dict):
        raise WireError("the manifest is no JSON object", where="manifest")
    kinds = (media_type.partition(";")[0].strip().lower(), document.get("mediaType"))
    kind = next((one for one in kinds if one in (*MANIFESTS, *INDEXES)), None)
    if kind in INDEXES or (kind is None and "manifests" in document):
        return Index(_parts(document, "manifests"))
    if document.get("schemaVersion") == 1:
        raise WireError(
            "the manifest is of Docker's schema 1, which engines no longer pull", where="manifest"
        )
    return Manifest(_part(document.get("config"), "config"), _parts(document, "layers"))


def choose(index: Index, wanted: Platform) -> Part:
    """Return the manifest of an index that an engine on this platform takes.

    Its own variant first, then one that names none, then any of the architecture. Raises
    ``WireError`` where there is none.
    """
    fitting = [
        part
        for part in index.manifests
        if part.platform is not None
        and (part.platform.os, part.platform.architecture) == (wanted.os, wanted.architecture)
    ]
    if not fitting:
        raise WireError(
            f"the image is not there for {wanted}, only for: {_known(index)}", where="manifest"
        )
    order = (wanted.variant, "")
    return min(
        fitting,
        key=lambda part: (
            order.index(part.platform.variant)
            if part.platform is not None and part.platform.variant in order
            else len(order)
        ),
    )


def _known(index: Index) -> str:
    """Name the platforms of an index, which are a server's words."""
    known = sorted({str(part.platform) for part in index.manifests if part.platform is not None})
    named = [printable(one, _PLATFORM) for one in known[:_NAMED]]
    if len(known) > _NAMED:
        named.append(f"and {len(known) - _NAMED} more")
    return ", ".join(named) or "none"


def is_content(digest: str, body: bytes) -> bool:
    """Tell whether a digest is that of ``body``."""
    algorithm, _, value = digest.partition(":")
    return hashlib.new(algorithm, body).hexdigest() == value


def foreign(parts: Iterable[Part]) -> tuple[str, ...]:
    """Return the URLs of foreign layers, each once."""
    return tuple(dict.fromkeys(url for part in parts for url in part.urls))


def _parts(document: Mapping[str, Any], key: str) -> tuple[Part, ...]:
    found = document.get(key)
    if not isinstance(found, list) or len(found) > MAX_PARTS:
        raise WireError(f"the manifest's {key} are no list of a usual length", where=key)
    return tuple(_part(one, key) for one in found)


def _part(value: object, key: str) -> Part:
    if not isinstance(value, dict):
        raise WireError(f"the manifest's {key} is no descriptor", where=key)
    digest = value.get("digest")
    if not isinstance(digest, str) or not _is_digest(digest):
        raise WireError(f"the manifest's {key} has no digest", where=key)
    urls = value.get("urls")
    known = tuple(url for url in urls if isinstance(url, str)) if isinstance(urls, list) else ()
    return Part(digest, _text(value, "mediaType"), known[:MAX_URLS], _platform(value))


def _platform(value: Mapping[str, Any]) -> Platform | None:
    found = value.get("platform")
    if not isinstance(found, dict):
        return None
    return Platform(_text(found, "os"), _text(found, "architecture"), _text(found, "variant"))


def _text(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    return found if isinstance(found, str) else ""


def _is_digest(text: str) -> bool:
    algorithm, _, value = text.partition(":")
    return len(value) == _DIGESTS.get(algorithm) and _HEX.fullmatch(value) is not None
