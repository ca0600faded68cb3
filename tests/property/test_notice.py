"""The notice against names of any kind, and requests that are none."""

from __future__ import annotations

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from ramnet.core.http import head_of
from ramnet.core.names import MAX_LABEL, MAX_NAME
from ramnet.core.notice import MAX_ATTRIBUTE, Asked, Message, asked_of, http_answer
from ramnet.core.policy import MAX_CONTACT, MAX_ORGANIZATION
from ramnet.errors import WireError

MESSAGES = st.builds(
    Message,
    st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), max_size=MAX_ORGANIZATION),
    st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), max_size=MAX_CONTACT),
)
PIECES = st.sampled_from(
    (
        *(b"GET ", b"CONNECT ", b"/", b" HTTP/1.1", b"\r\n", b"\n", b"Host: ", b"a.example"),
        *(b":443", b"http://", b"@", b"[", b"%", b"\xff", b"\0", b"Accept: text/html"),
    )
)
REQUESTS = st.binary(max_size=300) | st.lists(PIECES, max_size=20).map(b"".join)
LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")


@given(MESSAGES)
def test_the_name_is_a_plain_one(message: Message) -> None:
    name = message.certificate_name
    labels = name.split(".")
    assert labels[-2:] == ["ramnet", "invalid"]
    assert len(name) <= MAX_NAME
    for label in labels:
        assert len(label) <= MAX_LABEL
        assert LABEL.fullmatch(label)
    for text in (message.common_name, message.organization_name):
        assert 0 < len(text.encode()) <= MAX_ATTRIBUTE


@given(REQUESTS, MESSAGES)
def test_any_octets_get_an_answer_that_is_one(request: bytes, message: Message) -> None:
    try:
        asked = asked_of(head_of(request) or request)
    except WireError:
        asked = Asked()
    answer = http_answer(asked, message)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"%" not in answer
    assert head.isascii()
    assert re.fullmatch(rb"HTTP/1\.1 403 [ -~]+", head.split(b"\r\n")[0])
    assert all(re.fullmatch(rb"[A-Za-z-]+: [ -~]+", line) for line in head.split(b"\r\n")[1:])
    if not asked.head_only:
        assert f"Content-Length: {len(body)}".encode() in head
        if not asked.html:
            assert json.loads(body)["errors"][0]["code"] == "DENIED"
