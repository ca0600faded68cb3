from __future__ import annotations

import json

import pytest

from ramnet.core.notice import (
    MAX_ATTRIBUTE,
    Asked,
    Message,
    asked_of,
    http_answer,
    wanted_host,
)
from ramnet.core.policy import MAX_ORGANIZATION
from ramnet.errors import WireError

ACME = Message("acme", "it@acme.example")


@pytest.mark.parametrize(
    ("organization", "name"),
    [
        ("acme", "registry-access-denied-by-acme"),
        ("ACME & Co. KG", "registry-access-denied-by-acme-co-kg"),
        ("Ünïcode Łódź Straße", "registry-access-denied-by-unicode-lodz-strasse"),
        ("--.acme.--", "registry-access-denied-by-acme"),
        ("", "registry-access-denied-by-your-organization"),
        ("組織", "registry-access-denied-by-your-organization"),
        ("100%", "registry-access-denied-by-100"),
        (
            "the department of the interior and exterior",
            "registry-access-denied-by-the-department-of-the-interior-and.exterior",
        ),
        ("x" * 70, f"registry-access-denied-by.{'x' * 63}.{'x' * 7}"),
    ],
)
def test_the_name_of_the_certificate_is_the_message(organization: str, name: str) -> None:
    assert Message(organization).certificate_name == f"{name}.ramnet.invalid"


@pytest.mark.parametrize("organization", ["", "acme", "word " * 20, "x" * MAX_ORGANIZATION])
def test_a_subject_has_room_for_it(organization: str) -> None:
    message = Message(organization)
    for text in (message.common_name, message.organization_name):
        assert 0 < len(text.encode()) <= MAX_ATTRIBUTE
        assert text == text.strip()


def test_a_long_subject_ends_with_a_whole_word() -> None:
    message = Message("the department of the interior and exterior of everything")
    assert message.common_name == "registry access denied by the department of the interior and"
    assert Message("x" * 100).common_name.startswith("registry access denied by xxx")
    assert Message("é" * 50).organization_name == "é" * (MAX_ATTRIBUTE // 2)


@pytest.mark.parametrize(
    ("head", "asked"),
    [
        (b"GET /v2/ HTTP/1.1\r\nHost: quay.io", Asked(wanted_host("quay.io"))),
        (b"GET / HTTP/1.1\nhOST:  Quay.IO:5000 ", Asked(wanted_host("quay.io"))),
        (b"HEAD / HTTP/1.1\r\nHost: quay.io", Asked(wanted_host("quay.io"), head_only=True)),
        (
            b"CONNECT quay.io:443 HTTP/1.1\r\nHost: other.example",
            Asked(wanted_host("quay.io"), connect=True),
        ),
        (b"GET http://quay.io/v2 HTTP/1.1\r\nHost: a.example", Asked(wanted_host("quay.io"))),
        (
            b"GET / HTTP/1.1\r\nHost: quay.io\r\nAccept: text/html,*/*;q=0.8",
            Asked(wanted_host("quay.io"), html=True),
        ),
        (b"GET / HTTP/1.0", Asked()),
        (b"GET / HTTP/1.1\r\nHost: 192.0.2.1:5000", Asked()),
        (b"GET / HTTP/1.1\r\nHost: [2001:db8::1]:5000", Asked()),
        (b"GET / HTTP/1.1\r\nHost: quay.io:http", Asked()),
        (b"GET / HTTP/1.1\r\nHost: \xff\xfe", Asked()),
        (b"GET / HTTP/1.1\r\nHost quay.io", Asked()),
    ],
)
def test_a_head_is_read(head: bytes, asked: Asked) -> None:
    assert asked_of(head) == asked


@pytest.mark.parametrize("head", [b"", b"\r\n", b"SSH-2.0-x", b"GET / a b", b"G(T / HTTP/1.1"])
def test_what_is_no_request_is_an_error(head: bytes) -> None:
    with pytest.raises(WireError):
        asked_of(head)


def told(asked: Asked, message: Message) -> tuple[str, dict[str, str], bytes]:
    head, _, body = http_answer(asked, message).partition(b"\r\n\r\n")
    status, *lines = head.decode("ascii").split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body


def test_a_registry_client_gets_the_error_of_the_protocol() -> None:
    status, fields, body = told(Asked(wanted_host("quay.io")), ACME)
    sentence = "registry access denied by acme: quay.io is not allowed; contact it@acme.example"
    assert json.loads(body) == {"errors": [{"code": "DENIED", "message": sentence}]}
    assert fields["Content-Type"] == "application/json"
    assert fields["Content-Length"] == str(len(body))
    assert status == f"HTTP/1.1 403 {sentence}"


def test_a_client_of_a_proxy_gets_it_in_the_status() -> None:
    status, _, _ = told(Asked(wanted_host("quay.io"), connect=True), Message("Łódź 組織"))
    assert status == "HTTP/1.1 403 registry access denied by Lodz: quay.io is not allowed"


def test_a_head_is_answered_by_a_head() -> None:
    _, fields, body = told(Asked(head_only=True), ACME)
    assert (body, fields["Content-Length"] > "0") == (b"", True)


def test_a_browser_gets_a_page_and_no_markup_of_others() -> None:
    _, fields, body = told(Asked(wanted_host("quay.io"), html=True), Message("<b>a & b</b>", '"x"'))
    page = body.decode()
    assert fields["Content-Type"] == "text/html; charset=utf-8"
    assert "denied by &lt;b&gt;a &amp; b&lt;/b&gt;" in page
    assert "quay.io is not" in page
    assert "&quot;x&quot;" in page
    assert "<b>" not in page
