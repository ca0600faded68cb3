"""Whatever a registry sends: a value, or the one error that says so."""

from __future__ import annotations

import json
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from ramnet.core.challenge import parse_challenges, read_token
from ramnet.core.manifests import read_manifest
from ramnet.core.urls import PORTS, parse_url
from ramnet.errors import WireError

BASE = parse_url("https://registry.example/v2/a/b?c")
TOKEN = st.text("abcXYZ019!#$%&'*+-.^_`|~", min_size=1, max_size=8)
VALUE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["token", "config", "layers", "manifests", "digest", "platform", "urls"]
            ),
            inner,
        )
    ),
    max_leaves=12,
)


@given(st.lists(st.text(max_size=60), max_size=4))
def test_any_header_gives_challenges_or_an_error(headers: list[str]) -> None:
    with suppress(WireError):
        parse_challenges(headers)


@given(st.lists(st.tuples(TOKEN, st.dictionaries(TOKEN, VALUE, max_size=3)), max_size=3))
def test_what_is_written_by_the_book_is_read(wanted: list[tuple[str, dict[str, str]]]) -> None:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    text = ", ".join(
        f"{scheme} {', '.join(f'{name}={quoted(value)}' for name, value in params.items())}".strip()
        for scheme, params in wanted
    )
    found = parse_challenges([text])
    assert [one.scheme for one in found] == [scheme.lower() for scheme, _ in wanted]
    for one, (_, params) in zip(found, wanted, strict=True):
        assert dict(one.params) == {name.lower(): value for name, value in params.items()}


@given(st.text(max_size=60) | st.from_regex(r"(https?:)?//[^\s]{0,30}", fullmatch=True))
def test_any_location_gives_a_url_or_an_error(text: str) -> None:
    with suppress(WireError):
        found = parse_url(text, BASE)
        # What goes into a request line has nothing in it that could end that line.
        assert found.scheme in PORTS
        assert found.target.startswith("/")
        assert found.target.isascii()
        assert found.target.isprintable()
        assert " " not in found.target
        assert "/../" not in found.path
        assert parse_url(f"{found.scheme}://{found.authority}{found.target}") == found


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_gives_a_manifest_or_an_error(body: bytes) -> None:
    with suppress(WireError):
        read_manifest("", body)
    with suppress(WireError):
        assert read_token(body).isascii()
