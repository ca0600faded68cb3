"""Edits of a policy's text: the entry is changed, and nothing else."""

from __future__ import annotations

import json
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramnet.core import policyedit
from ramnet.core.explain import parse_target
from ramnet.core.names import parse_address, parse_pattern
from ramnet.core.policy import RegistryEntry, initial_policy_text, parse_policy
from ramnet.core.policyedit import (
    MAX_INLINE,
    Edited,
    add_registry,
    entry_of,
    registry_address,
    remove_extra_hosts,
    remove_registry,
)
from ramnet.core.textfile import MAX_FILE_BYTES, tables_of
from ramnet.errors import NameFault, PolicyError, ReferenceFault

TODAY = date(2026, 6, 1)
HEAD = 'version = 1\norganization = "acme"\n'
TWO = (
    HEAD
    + """
# All of them.
[[registry]]    # the first
address = "a.example"   # A
# nickname = "later"

# The second.
[[registry]]
address = "b.example"
extra_hosts = [
    "X.b.example",   # one
    # about two
    "y.b.example",
]
[registry.x-owner]
team = "b"

# How.
[enforcement]
mode = "audit"
"""
)


def add(text: str | bytes, address: str, source: str = "p.toml", /, **keys: object) -> Edited:
    wanted = entry_of(parse_address(address), keys)
    return add_registry(text, wanted, TODAY, source=source, ramnet_version="0.1")


def remove(text: str, address: str, source: str = "p.toml") -> Edited:
    where = parse_address(address)
    return remove_registry(text, where, source=source, ramnet_version="0.1")


def drop(text: str, address: str, *hosts: str, source: str = "p.toml") -> Edited:
    patterns = [parse_pattern(host) for host in hosts]
    where = parse_address(address)
    return remove_extra_hosts(text, where, patterns, source=source, ramnet_version="0.1")


def entry(edited: Edited, address: str) -> RegistryEntry:
    """Give the entry of an address, read from the text and not from what the edit says."""
    source = "p.json" if edited.text.lstrip("\ufeff").startswith("{") else "p.toml"
    found = parse_policy(edited.text, source=source, ramnet_version="0.1")
    assert found == edited.after
    (one,) = (item for item in found.registry if str(item.address) == address)
    return one


# What is meant


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("nginx", "docker.io"),
        ("nginx:1.27", "docker.io"),
        ("acme/app", "docker.io"),
        ("docker.io", "docker.io"),
        ("index.docker.io/library/nginx", "docker.io"),
        ("quay.io/acme/app:1.2", "quay.io"),
        (" quay.io ", "quay.io"),
        ("QUAY.IO", "quay.io"),
        ("registry:5000", "registry:5000"),
        ("registry:5000/app", "registry:5000"),
        ("localhost", "localhost"),
        ("localhost:*", "localhost:*"),
        ("registry:*", "registry:*"),
        ("localhost/app", "localhost"),
        ("*.example.com", "*.example.com"),
        ("*.example.com:8443", "*.example.com:8443"),
        ("10.0.0.1:5000", "10.0.0.1:5000"),
        ("[2001:db8::1]:5000/app", "[2001:db8::1]:5000"),
        ("2001:db8::1", "2001:db8::1"),
        ("quay.io/app@sha256:" + "0" * 64, "quay.io"),
    ],
)
def test_what_a_word_means(text: str, address: str) -> None:
    assert str(registry_address(text)) == address


@pytest.mark.parametrize(
    "text",
    ["nginx", "a/b", "quay.io", "q.io/a:b", "r:5000", "localhost", "[::1]:5", "::1", "10.0.0.1"],
)
def test_it_is_the_registry_that_explain_judges(text: str) -> None:
    target = parse_target(text)
    address = registry_address(text)
    host = address.pattern.name if address.pattern else None
    if host == "docker.io":  # what is on the wire for it is the catalogue's business
        assert target.host == "registry-1.docker.io"
    else:
        assert (target.host, target.address, target.port) == (host, address.ip, address.port or 443)


@pytest.mark.parametrize("text", ["", "https://quay.io/x", "quay.io/UPPER", "a b.example", "::::"])
def test_what_means_nothing(text: str) -> None:
    with pytest.raises((NameFault, ReferenceFault)) as caught:
        registry_address(text)
    assert caught.value.hint


def test_every_faulty_key_of_an_entry_is_told() -> None:
    with pytest.raises(PolicyError) as caught:
        entry_of(
            parse_address("a.example"),
            {"networks": ("10.0.0.0/8", "all"), "expires": "soon", "nickname": "\n"},
        )
    assert [fault.place for fault in caught.value.faults] == ["nickname", "networks[1]", "expires"]
    assert "the entry for a.example" in caught.value.message


# Adding


def test_a_new_entry_comes_behind_the_last_one_and_before_the_comments_of_what_follows() -> None:
    edited = add(TWO, "quay.io", nickname='the "Q"', expires="2027-01-31")
    new = '\n[[registry]]\naddress = "quay.io"\nnickname = "the \\"Q\\""\nexpires = 2027-01-31\n'
    assert edited.text == TWO.replace("\n# How.", f"{new}\n# How.")
    assert edited.changed
    assert entry(edited, "quay.io").expires == date(2027, 1, 31)


def test_a_first_policy_reads_well_after_an_addition() -> None:
    text = initial_policy_text("acme")
    edited = add(text, "quay.io")
    before = 'nickname = "Docker Hub"\n'
    new = '\n[[registry]]\naddress = "quay.io"\n'
    assert edited.text == text.replace(before, before + new)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (HEAD, HEAD + '\n[[registry]]\naddress = "q.io"\n'),
        (HEAD.rstrip(), HEAD + '\n[[registry]]\naddress = "q.io"\n'),
        (
            HEAD + '[[registry]]\naddress = "a.io"\n# its own',
            HEAD + '[[registry]]\naddress = "a.io"\n# its own\n\n[[registry]]\naddress = "q.io"\n',
        ),
        (
            HEAD + '[[registry]]\naddress = "a.io"\n# of b\n[[destination]]\naddress = "b.io"\n',
            HEAD
            + '[[registry]]\naddress = "a.io"\n\n[[registry]]\naddress = "q.io"\n\n'
            + '# of b\n[[destination]]\naddress = "b.io"\n',
        ),
        (
            HEAD.replace("\n", "\r\n") + '[[registry]]\r\naddress = "a.io"\r\n\r\n# end\r\n',
            HEAD.replace("\n", "\r\n")
            + '[[registry]]\r\naddress = "a.io"\r\n\r\n[[registry]]\r\naddress = "q.io"\r\n'
            + "\r\n# end\r\n",
        ),
        (HEAD + "registry = []\n", HEAD + 'registry = [{address = "q.io"}]\n'),
        (
            HEAD + 'registry = [{address = "a.io"}] # all\n[enforcement]\n',
            HEAD + 'registry = [{address = "a.io"}, {address = "q.io"}] # all\n[enforcement]\n',
        ),
        ("\ufeff" + HEAD, "\ufeff" + HEAD + '\n[[registry]]\naddress = "q.io"\n'),
    ],
)
def test_where_a_new_entry_goes(before: str, after: str) -> None:
    assert add(before, "q.io").text == after
    assert add(before.encode(), "q.io").text == after


def test_entries_with_other_tables_between_them() -> None:
    text = (
        HEAD
        + '[[registry]]\naddress = "a.io"\n[support]\ncontact = "x"\n'
        + '[[registry]]\naddress = "b.io"\n'
    )
    assert add(text, "q.io").text == text + '\n[[registry]]\naddress = "q.io"\n'
    assert remove(text, "a.io").text == text.replace('[[registry]]\naddress = "a.io"\n', "")
    changed = add(text, "a.io", nickname="A").text
    assert changed == text.replace('"a.io"\n', '"a.io"\nnickname = "A"\n')


def test_an_entry_of_an_inline_list() -> None:
    text = HEAD + 'registry = [{address = "a.io"}, {address = "b.io"}]\n'
    edited = add(text, "b.io", networks=("10.0.0.0/8",))
    expected = text.replace('"b.io"', '"b.io", networks = ["10.0.0.0/8"]')
    assert edited.text.replace(",networks", ", networks") == expected  # as tomlkit likes it


def test_the_same_entry_twice_is_no_change() -> None:
    edited = add(TWO, "A.example")
    assert (edited.text, edited.changed) == (TWO, False)
    again = add(TWO, "b.example", extra_hosts=("x.B.example",))
    assert (again.text, again.changed) == (TWO, False)


def test_what_is_given_is_added_to_the_entry() -> None:
    edited = add(
        TWO,
        "b.example",
        extra_hosts=("x.b.example", "*.z.example"),
        networks=("10.0.0.0/8",),
        regions=("eu-west-1",),
        unverified_hosts=True,
        reason="asked",
    )
    expected = TWO.replace('    "y.b.example",\n', '    "y.b.example",\n    "*.z.example",\n')
    found = entry(edited, "b.example")
    assert [str(host) for host in found.extra_hosts] == [
        "x.b.example",
        "y.b.example",
        "*.z.example",
    ]
    assert (found.regions, found.unverified_hosts, found.reason) == (("eu-west-1",), True, "asked")
    for line in expected.splitlines():
        assert line in edited.text.splitlines()
    assert edited.text.startswith(TWO[: TWO.index("# The second.")])
    assert edited.text.endswith(TWO[TWO.index("# How.") :])


def test_a_new_nickname_replaces_the_old_one() -> None:
    edited = add(add(TWO, "a.example", nickname="one").text, "a.example", nickname="two")
    expected = TWO.replace('"a.example"   # A\n', '"a.example"   # A\nnickname = "two"\n')
    assert edited.text == expected


@pytest.mark.parametrize(
    ("given", "left"),
    [({}, None), ({"expires": "2026-12-31"}, date(2026, 12, 31))],
)
def test_an_entry_that_has_expired_counts_again(given: dict[str, str], left: date | None) -> None:
    text = HEAD + '[[registry]]\naddress = "a.io"\nexpires = 2026-05-31\n'
    assert entry(add(text, "a.io", **given), "a.io").expires == left
    still = text.replace("05-31", "06-01")  # its last day is today
    assert add(still, "a.io").text == still


# Removing


def test_an_entry_goes_and_the_comments_around_it_stay() -> None:
    assert remove(TWO, "a.example").text == TWO.replace(
        '[[registry]]    # the first\naddress = "a.example"   # A\n', ""
    )
    gone = remove(TWO, "b.example").text
    assert gone == TWO[: TWO.index("[[registry]]\naddress")] + TWO[TWO.index("\n# How.") :]
    assert tables_of(gone, "registry") == [
        (gone.index("[[registry]]"), gone.index("[enforcement]"))
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (HEAD + '\n[[registry]]\naddress = "a.io"\n', HEAD),
        (
            HEAD + '\n[[registry]]\naddress = "a.io"\n\n[[registry]]\naddress = "b.io"\n',
            HEAD + '\n[[registry]]\naddress = "b.io"\n',
        ),
        (
            HEAD + 'registry = [{address = "a.io"}, {address = "b.io"}]\n',
            HEAD + 'registry = [{address = "b.io"}]\n',
        ),
        (HEAD + 'registry = [{address = "a.io"}]\n', HEAD + "registry = []\n"),
    ],
)
def test_what_is_left_of_a_removal(before: str, after: str) -> None:
    assert remove(before, "a.io").text == after


def test_only_extra_hosts_are_removed() -> None:
    one = drop(TWO, "b.example", "x.b.example")
    assert [str(host) for host in entry(one, "b.example").extra_hosts] == ["y.b.example"]
    assert "# about two" in one.text
    both = drop(TWO, "b.example", "x.b.example", "y.b.example")
    assert entry(both, "b.example").extra_hosts == ()
    assert "extra_hosts" not in both.text
    assert "[registry.x-owner]" in both.text


@pytest.mark.parametrize(
    ("address", "hosts", "said", "hint"),
    [
        ("c.example", (), "does not list c.example", "policy show"),
        ("a.example:5000", (), "does not list a.example:5000", "it lists a.example"),
        ("10.0.0.1", (), "does not list 10.0.0.1", "policy show"),
        ("a.example", ("x.io",), "x.io is no extra host of a.example", "none"),
        ("b.example", ("x.io",), "x.io is no extra host", "x.b.example, y.b.example"),
    ],
)
def test_what_is_not_there_cannot_be_removed(
    address: str, hosts: tuple[str, ...], said: str, hint: str
) -> None:
    with pytest.raises(NameFault) as caught:
        _ = drop(TWO, address, *hosts) if hosts else remove(TWO, address)
    assert said in caught.value.message
    assert hint in caught.value.hint


def test_a_pattern_that_covers_what_is_asked_for_is_named() -> None:
    with pytest.raises(NameFault) as caught:
        remove(HEAD + '[[registry]]\naddress = "*.example"\n', "a.example")
    assert caught.value.hint == "it lists *.example"


# JSON


def test_json_is_edited_as_json() -> None:
    data = {"version": 1, "x-note": "\ud800é", "organization": "acme", "registry": []}
    text = json.dumps(data, indent=4)
    one = add(text, "a.example", "p.json", expires="2027-01-31", networks=("10.0.0.0/8",))
    wanted = {"address": "a.example", "networks": ["10.0.0.0/8"], "expires": "2027-01-31"}
    assert json.loads(one.text) == {**data, "registry": [wanted]}
    assert one.text.startswith('{\n    "version": 1,')
    two = add(one.text, "a.example", "p.json", networks=("10.0.0.0/9",), unverified_hosts=True)
    assert entry(two, "a.example").unverified_hosts
    assert json.loads(remove(two.text, "a.example", "p.json").text) == data


def test_json_of_one_line_stays_one_and_keeps_its_letters() -> None:
    text = '{"version": 1, "organization": "Größe"}'
    assert add(text, "a.io", "p.json").text == (
        '{"version": 1, "organization": "Größe", "registry": [{"address": "a.io"}]}\n'
    )


# What cannot be done


@pytest.mark.parametrize(
    "text",
    [
        '{"version": 1, "organization": "acme", "x-big": 1e999}',  # infinity is no JSON
        # A parser keeps the last one only, and the first would be gone.
        '{"version": 1, "organization": "acme", "x-a": 1, "x-a": 2}',
        '{"version": 1, "organization": "acme", "x-a": {"b": [{"c": 1, "c": 1}]}}',
        HEAD + 'registry = [{address = "a.io"}]' + " " * MAX_INLINE,
    ],
)
def test_a_file_that_cannot_be_edited_is_told(text: str) -> None:
    source = "p.json" if text.startswith("{") else "p.toml"
    with pytest.raises(PolicyError, match="cannot be edited here") as caught:
        add(text, "q.io", source)
    assert caught.value.faults[0].hint == "change it by hand"


def test_an_edit_that_would_mean_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The net below everything: here an edit that does nothing."""
    monkeypatch.setattr(policyedit, "_put", lambda *_: None)
    with pytest.raises(PolicyError, match="would mean something else"):
        add(TWO, "a.example", nickname="A")


@pytest.mark.parametrize("text", ["", "version = 2\n", "registry = 3\n", "[[registry]]\n"])
def test_a_file_with_faults_is_not_edited(text: str) -> None:
    with pytest.raises(PolicyError):
        add(text, "q.io")


def test_a_file_that_is_too_large_is_not_edited() -> None:
    with pytest.raises(PolicyError, match="too large"):
        add(b" " * (MAX_FILE_BYTES + 1), "q.io")


# Whatever the file looks like

_COMMENT = st.sampled_from(["", "\n", "# c\n", "\n# c\n", "# c\n\n", "\n\n# [[registry]]\n"])
_ENTRY = st.sampled_from(
    [
        'address = "NAME"\n',
        'address = "NAME" # c\n# d\nnickname = "n"\n',
        "extra_hosts = [\n  'e.x', # e\n]\naddress = \"NAME\"\n",
        'address = "NAME"\nx-a = [\n [1, 2],\n]\n[registry.x-b]\nk = """\n[[registry]]\n"""\n',
    ]
)
_OTHER = st.sampled_from(["", '[support]\ncontact = "c"\n', '[x-y.z]\na = "[[registry]]"\n'])


@st.composite
def files(draw: st.DrawFn) -> tuple[str, int]:
    count = draw(st.integers(0, 4))
    other_at = draw(st.integers(0, count))
    text = HEAD
    for index in range(count + 1):
        if index == other_at:
            text += draw(_COMMENT) + draw(_OTHER)
        if index < count:
            body = draw(_ENTRY).replace("NAME", f"r{index}.example")
            text += draw(_COMMENT) + "[[registry]]\n" + body
    return text + draw(_COMMENT), count


@given(files())
def test_what_is_added_and_removed_again_leaves_every_line(made: tuple[str, int]) -> None:
    text, count = made
    assert len(tables_of(text, "registry")) == count
    added = add(text, "new.example", extra_hosts=("n.x",))
    assert [str(item.address) for item in added.after.registry][-1] == "new.example"
    lines = [line for line in text.split("\n") if line]
    back = remove(added.text, "new.example")
    assert [line for line in back.text.split("\n") if line] == lines
    for index in range(count):
        name = f"r{index}.example"
        less = remove(text, name)
        assert [str(item.address) for item in less.after.registry] == [
            f"r{other}.example" for other in range(count) if other != index
        ]
        more = add(text, name, reason="why")
        assert entry(more, name).reason == "why"
        head, _, tail = more.text.partition('reason = "why"\n')
        assert [line for line in (head + tail).split("\n") if line] == lines
