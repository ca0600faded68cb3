"""Container images made by hand: no engine, no network, and the same bytes every time.

Formats: Docker image manifest version 2 schema 2, the OCI image configuration, and the storage
layout of the registry server (distribution, registry/storage/paths.go).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ramnet.lab.programs import require

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_APPLETS = ("sh", "cat", "echo", "ip", "ls", "nc", "nslookup", "ping", "sleep", "true", "wget")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_CREATED = "2024-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: the compressed tar, and the digest of the tar itself."""

    blob: bytes
    diff_id: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image: its manifest, its configuration, its layers, as they are stored."""

    manifest: bytes
    config: bytes
    layers: tuple[Layer, ...]

    @property
    def digest(self) -> str:
        """The digest of the manifest, as in NAME@sha256:..."""
        return digest(self.manifest)


def digest(data: bytes) -> str:
    """Return the digest of a blob, "sha256:" and 64 hexadecimal digits."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> Layer:
    """Make a layer of executable files (path without a leading slash) and symbolic links."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
        for name, target in sorted((links or {}).items()):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    data = raw.getvalue()
    return Layer(gzip.compress(data, compresslevel=1, mtime=0), digest(data))


@cache
def busybox() -> Layer:
    """Return a layer with a static busybox and its usual names."""
    program = Path(require("busybox")).read_bytes()
    links = {f"bin/{applet}": "busybox" for applet in _APPLETS}
    return layer({"bin/busybox": program, "etc/passwd": b"root:x:0:0::/:/bin/sh\n"}, links)


def image(layers: Iterable[Layer]) -> Image:
    """Make an image that runs /bin/sh."""
    stack = tuple(layers)
    machine = platform.machine()
    config = _json(
        {
            "architecture": _ARCHITECTURES.get(machine, machine),
            "os": "linux",
            "created": _CREATED,
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [one.diff_id for one in stack]},
            "history": [{"created": _CREATED, "created_by": "ramnet lab"} for _ in stack],
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": _descriptor(_CONFIG, config),
            "layers": [_descriptor(_LAYER, one.blob) for one in stack],
        }
    )
    return Image(manifest, config, stack)


def store(root: Path, repository: str, tag: str, made: Image) -> None:
    """Put an image into the storage directory of a registry, as a finished push leaves it."""
    base = root / "docker/registry/v2"
    home = base / "repositories" / repository
    for blob in (made.config, *(one.blob for one in made.layers)):
        _store_blob(base, blob)
        _link(home / "_layers", digest(blob))
    _store_blob(base, made.manifest)
    _link(home / "_manifests/revisions", made.digest)
    _link(home / f"_manifests/tags/{tag}/index", made.digest)
    current = home / f"_manifests/tags/{tag}/current"
    current.mkdir(parents=True, exist_ok=True)
    (current / "link").write_text(made.digest, encoding="ascii")


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _descriptor(kind: str, blob: bytes) -> dict[str, object]:
    return {"mediaType": kind, "size": len(blob), "digest": digest(blob)}


def _store_blob(base: Path, blob: bytes) -> None:
    algorithm, _, value = digest(blob).partition(":")
    place = base / "blobs" / algorithm / value[:2] / value
    place.mkdir(parents=True, exist_ok=True)
    (place / "data").write_bytes(blob)


def _link(directory: Path, target: str) -> None:
    algorithm, _, value = target.partition(":")
    place = directory / algorithm / value
    place.mkdir(parents=True, exist_ok=True)
    (place / "link").write_text(target, encoding="ascii")
