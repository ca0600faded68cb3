from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from ramnet.core.manifests import (
    INDEXES,
    MANIFESTS,
    MAX_MANIFEST,
    MAX_PARTS,
    Index,
    Manifest,
    Part,
    Platform,
    choose,
    foreign,
    is_content,
    platform_of,
    read_manifest,
)
from ramnet.errors import WireError

ONE = "sha256:" + "1" * 64
TWO = "sha512:" + "2" * 128


def document(**more: Any) -> bytes:
    plain = {"schemaVersion": 2, "config": {"digest": ONE}, "layers": [{"digest": TWO}]}
    return json.dumps({**plain, **more}).encode()


def index(*platforms: dict[str, str] | None) -> bytes:
    parts = [{"digest": f"sha256:{n:064x}", "platform": one} for n, one in enumerate(platforms)]
    return json.dumps({"manifests": parts}).encode()


@pytest.mark.parametrize("kind", [*MANIFESTS, "", "application/json", "application/octet-stream"])
def test_a_manifest_is_read(kind: str) -> None:
    found = read_manifest(kind, document())
    assert found == Manifest(Part(ONE, ""), (Part(TWO, ""),))


@pytest.mark.parametrize("kind", [*INDEXES, f"{INDEXES[0]}; charset=utf-8", "", "text/plain"])
def test_an_index_is_read(kind: str) -> None:
    found = read_manifest(kind, index({"os": "linux", "architecture": "amd64"}, None))
    assert isinstance(found, Index)
    assert [part.platform for part in found.manifests] == [Platform("linux", "amd64"), None]


def test_the_document_says_what_the_header_does_not() -> None:
    text = json.dumps({"mediaType": INDEXES[0], "manifests": [], "config": {}}).encode()
    assert read_manifest("application/json", text) == Index(())
    assert isinstance(read_manifest(MANIFESTS[0], document(mediaType=INDEXES[0])), Manifest)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "no JSON object"),
        (b" " * (MAX_MANIFEST + 1), "larger"),
        (b'{"schemaVersion": 1}', "schema 1"),
        (b'{"schemaVersion": 2}', "config is no descriptor"),
        (document(config={"digest": "sha256:short"}), "config has no digest"),
        (document(config={"digest": "md5:" + "1" * 32}), "config has no digest"),
        (document(config={"digest": "sha256:" + "/" * 64}), "config has no digest"),
        (document(config={"digest": 1}), "config has no digest"),
        (document(layers={}), "layers are no list"),
        (document(layers=[{}] * (MAX_PARTS + 1)), "layers are no list"),
        (document(layers=["x"]), "layers is no descriptor"),
        (b'{"manifests": 1}', "manifests are no list"),
    ],
)
def test_what_is_no_manifest_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(WireError, match=why):
        read_manifest("", body)


def test_an_engine_takes_its_own_variant_first() -> None:
    arm = ({"os": "linux", "architecture": "arm", "variant": v} for v in ("v5", "v6", "v7"))
    found = read_manifest("", index(*arm, {"os": "linux", "architecture": "arm"}))
    assert isinstance(found, Index)

    def chosen(variant: str) -> int:
        return int(choose(found, Platform("linux", "arm", variant)).digest[-1])

    assert (chosen("v6"), chosen("v7"), chosen(""), chosen("v8")) == (1, 2, 3, 3)


def test_any_variant_is_better_than_none() -> None:
    found = read_manifest("", index({"os": "linux", "architecture": "arm64", "variant": "v9"}))
    assert isinstance(found, Index)
    assert choose(found, Platform("linux", "arm64", "v8")) == found.manifests[0]


def test_an_image_for_others_is_told() -> None:
    others = ({"os": "windows", "architecture": "amd64"}, {"os": "linux", "architecture": "s390x"})
    found = read_manifest("", index(*others, None))
    assert isinstance(found, Index)
    with pytest.raises(WireError, match="linux/amd64, only for: linux/s390x, windows/amd64"):
        choose(found, Platform("linux", "amd64"))
    with pytest.raises(WireError, match="only for: none"):
        choose(Index(()), Platform("linux", "amd64"))


def test_foreign_layers_say_where_they_are() -> None:
    urls = ["https://a.example/x", 1, "https://b.example/x"]
    layers = [{"digest": ONE, "urls": urls}, {"digest": TWO, "urls": urls[:1]}, {"digest": TWO}]
    found = read_manifest("", document(layers=layers))
    assert isinstance(found, Manifest)
    assert foreign(found.layers) == ("https://a.example/x", "https://b.example/x")


def test_a_digest_is_compared() -> None:
    assert is_content(f"sha256:{hashlib.sha256(b'x').hexdigest()}", b"x")
    assert not is_content(ONE, b"x")


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        ("x86_64", "linux/amd64"),
        ("aarch64", "linux/arm64/v8"),
        ("armv7l", "linux/arm/v7"),
        ("riscv64", "linux/riscv64"),
    ],
)
def test_the_platform_of_a_machine(machine: str, name: str) -> None:
    assert str(platform_of(machine)) == name


def test_the_platforms_of_a_server_are_told_briefly_and_harmlessly() -> None:
    """A server may name a thousand, and write to the terminal by them."""
    found = read_manifest(
        INDEXES[0],
        index(*({"os": f"\x1b]0;{n:04}\x9b", "architecture": "x" * 999} for n in range(900))),
    )
    assert isinstance(found, Index)
    with pytest.raises(WireError) as told:
        choose(found, Platform("linux", "amd64"))
    assert told.value.message.isprintable()
    assert "0009" in told.value.message
    assert "0010" not in told.value.message
    assert told.value.message.endswith("and 890 more")
    assert len(told.value.message) < 600
