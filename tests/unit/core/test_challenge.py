from __future__ import annotations

import json

import pytest

from ramnet.core.challenge import (
    MAX_CHALLENGES,
    MAX_HEADER,
    MAX_PARAMS,
    MAX_TOKEN,
    Challenge,
    Credentials,
    parse_challenges,
    pull_scope,
    read_token,
    token_pairs,
    token_realm,
    wanted,
)
from ramnet.core.urls import parse_url
from ramnet.errors import WireError

BASE = parse_url("https://registry.example/v2/")
REALM = "https://auth.docker.io/token"
HUB = f'Bearer realm="{REALM}",service="registry.docker.io"'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (HUB, [("bearer", {"realm": REALM, "service": "registry.docker.io"})]),
        ("Basic", [("basic", {})]),
        ("Negotiate , Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        ("Negotiate YWJj==, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        ("NTLM abc", [("ntlm", {})]),
        ('BASIC REALM="a, \\"b\\" c" , x = "y"', [("basic", {"realm": 'a, "b" c', "x": "y"})]),
        ("Bearer a=1,, a=2,", [("bearer", {"a": "2"})]),
        ("Digest a=b, Basic realm=x", [("digest", {"a": "b"}), ("basic", {"realm": "x"})]),
        (", ,", []),
        ("", []),
    ],
)
def test_challenges_are_read(text: str, found: list[tuple[str, dict[str, str]]]) -> None:
    assert [(one.scheme, dict(one.params)) for one in parse_challenges([text])] == found


def test_several_fields_are_one_list() -> None:
    assert [one.scheme for one in parse_challenges(["Basic realm=x", HUB])] == ["basic", "bearer"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('Bearer realm="open', "open quote"),
        ('Bearer realm="open\\', "open quote"),
        ("=x", "does not parse"),
        ("Bearer@x", "does not parse"),
        ('Bearer realm="x" y', "does not parse"),
        ("x" * (MAX_HEADER + 1), "too long"),
        ("a, " * (MAX_CHALLENGES + 1), "more challenges"),
        ("Bearer " + ",".join(f"a{n}=1" for n in range(MAX_PARAMS + 1)), "more parameters"),
    ],
)
def test_what_does_not_parse_is_refused(text: str, why: str) -> None:
    with pytest.raises(WireError, match=why):
        parse_challenges([text])


def test_bearer_is_taken_before_basic_and_the_rest_is_not() -> None:
    found = parse_challenges(["Negotiate, Basic realm=x", HUB, "Bearer realm=second"])
    assert (taken := wanted(found)) is not None
    assert taken.params["realm"] == "https://auth.docker.io/token"
    assert (taken := wanted(found[:2])) is not None
    assert taken.scheme == "basic"
    assert wanted(found[:1]) is None


def test_the_realm_is_a_url() -> None:
    assert str(token_realm(parse_challenges([HUB])[0], BASE)) == "https://auth.docker.io/token"
    own = Challenge("bearer", {"realm": "/jwt/auth"})
    assert str(token_realm(own, BASE)) == "https://registry.example/jwt/auth"
    with pytest.raises(WireError, match="no realm"):
        token_realm(Challenge("bearer"), BASE)
    with pytest.raises(WireError, match="realm is a URL that is neither"):
        token_realm(Challenge("bearer", {"realm": "gopher://x/"}), BASE)


def test_what_is_asked_of_the_realm() -> None:
    scope = pull_scope("library/busybox")
    assert scope == "repository:library/busybox:pull"
    plain = Challenge("bearer", {"service": "s", "scope": "registry:catalog:* " + scope})
    assert token_pairs(plain, scope, None) == [
        ("service", "s"),
        ("scope", "registry:catalog:*"),
        ("scope", scope),
    ]
    none = Challenge("bearer")
    known = Credentials("me", "secret")
    assert token_pairs(none, scope, known) == [("scope", scope), ("account", "me")]
    identity = Credentials("", "refresh", identity=True)
    assert dict(token_pairs(none, scope, identity)) == {
        "scope": scope,
        "grant_type": "refresh_token",
        "client_id": "ramnet",
        "refresh_token": "refresh",
    }


def test_a_secret_is_not_in_what_is_printed() -> None:
    assert "hunter2" not in repr(Credentials("me", "hunter2"))


@pytest.mark.parametrize(
    "answer", [{"token": "abc"}, {"access_token": "abc"}, {"token": "", "access_token": "abc"}]
)
def test_the_token_is_found(answer: dict[str, str]) -> None:
    assert read_token(json.dumps(answer).encode()) == "abc"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"<html>", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "no token"),
        (b'{"token": 1}', "no token"),
        (b'{"token": "a\\r\\nX: y"}', "is not one"),
        (b'{"token": "a b"}', "is not one"),
        ('{"token": "ä"}'.encode(), "is not one"),
        (b'{"token": "' + b"a" * (MAX_TOKEN + 1) + b'"}', "is not one"),
    ],
)
def test_an_answer_without_a_token_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(WireError, match=why):
        read_token(body)
