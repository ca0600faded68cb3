"""What Docker's config.json and the head of a Dockerfile say of registries."""

from __future__ import annotations

import json

import pytest

from ramnet.core.clientfiles import docker_config, dockerfile
from ramnet.core.enginefacts import Named, Unreadable
from ramnet.core.enginetables import MAX_ITEMS
from tests.unit.core.test_enginefiles import SECRET, brief


def test_logins_and_credential_helpers() -> None:
    text = json.dumps(
        {
            "auths": {
                "https://index.docker.io/v1/": {"auth": SECRET},
                "https://index.docker.io/v1/access-token": {"auth": SECRET},
                "quay.io": {},
                "reg.example:5000": {"auth": SECRET},
                "https://user:hunter2@old.example/v2/": {},
                "[2001:db8::1]:5000": {},
            },
            "credHelpers": {"123456789012.dkr.ecr.eu-west-1.amazonaws.com": "ecr-login"},
            "credsStore": "desktop",
        }
    )
    found = list(docker_config(text.encode(), "f"))
    assert brief(found) == [
        "named index.docker.io:443 login",
        "named quay.io:443 login",
        "named reg.example:5000 login",
        "named old.example:443 login",
        "named [2001:db8::1]:5000 login",
        "named 123456789012.dkr.ecr.eu-west-1.amazonaws.com:443 credential helper",
    ]
    assert SECRET not in repr(found)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", ["unreadable: it is not valid JSON (line 1)"]),
        ("[]", ["unreadable: it holds a list, not a table"]),
        ("{}", []),
        ('{"auths": null}', []),
        ('{"auths": 7}', ["unreadable: auths is a number, not a table"]),
        ('{"auths": {"a b": {}}}', ["named a:443 login"]),
        ('{"auths": {"\\u001b[31m": {}}}', ["named (an address that cannot be read) login"]),
    ],
)
def test_a_config_json_of_another_shape(text: str, lines: list[str]) -> None:
    assert brief(docker_config(text.encode(), "f")) == lines


def test_logins_are_bounded_and_said_to_be() -> None:
    text = json.dumps({"auths": {f"r{number}.example": {} for number in range(MAX_ITEMS + 1)}})
    said, *named = docker_config(text.encode(), "f")
    assert len(named) == MAX_ITEMS
    assert all(isinstance(fact, Named) for fact in named)
    assert said == Unreadable("f", f"of auths only the first {MAX_ITEMS} items are read")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("# syntax=docker/dockerfile:1\nFROM x", "docker.io:443"),
        ("#syntax=docker/dockerfile", "docker.io:443"),
        ("#   SYNTAX  =  ghcr.io/a/b:1   \r\n", "ghcr.io:443"),
        ("# syntax=reg.example:5000/a@sha256:" + "0" * 64, "reg.example:5000"),
        ("# syntax=docker/dockerfile:1 --flag", "docker.io:443"),
        ("# syntax=localhost:5000/frontend", "localhost:5000"),
        ("# escape=`\n# syntax=quay.io/a/b\n", "quay.io:443"),
        ("# check=skip=all\n# syntax=quay.io/a/b\n", "quay.io:443"),
        ("\ufeff# syntax=quay.io/a/b", "quay.io:443"),
        ("#!/usr/bin/env docker\n# syntax=quay.io/a/b", "quay.io:443"),
        ("// syntax=quay.io/a/b\n{}", "quay.io:443"),
        ('{"syntax": "quay.io/a/b", "x": 1}', "quay.io:443"),
    ],
)
def test_the_frontend_of_a_dockerfile(text: str, where: str) -> None:
    assert brief(dockerfile(text.encode(), "f")) == [f"named {where} frontend"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "#!/bin/sh",
        "FROM docker.io/library/x",
        "FROM x\n# syntax=quay.io/a/b",
        "\n# syntax=quay.io/a/b",
        " # syntax=quay.io/a/b",
        "# a comment\n# syntax=quay.io/a/b",
        "# other=1\n# syntax=quay.io/a/b",
        "# escape=`\n# escape=`\n# syntax=quay.io/a/b",
        "# syntax=",
        "# escape=`",
        '{"syntax": 7}',
        '["syntax"]',
        "[" * 100_000,
    ],
)
def test_a_dockerfile_without_a_frontend(text: str) -> None:
    assert brief(dockerfile(text.encode(), "f")) == []


@pytest.mark.parametrize("image", ["UPPER/Case", "a b", "https://x.example/y", "\x1b[31m"])
def test_a_frontend_that_is_no_reference(image: str) -> None:
    (fact,) = dockerfile(json.dumps({"syntax": image}).encode(), "f")
    assert fact == Unreadable("f", "the syntax that it asks for is no image reference")
