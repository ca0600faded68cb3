"""wsl.conf: what WSL reads of it, and edits that leave the rest octet for octet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramnet.core.wslconf import (
    BOM,
    COMMAND,
    MARKER,
    SYSTEMD,
    parse,
    set_command,
    unset_command,
)

HOOK = "/opt/ramnet/current/libexec/ramnet-boot"
OURS = MARKER + b"\ncommand = " + HOOK.encode() + b"\n"

FULL = b"""\
# settings of this distribution
[automount]
enabled = true   # as ever
options = "metadata,umask=22"

[network]
generateResolvConf=false
[user]
default=dev
"""


def value(data: bytes, name: str = COMMAND) -> bytes | None:
    found = parse(data).first(name)
    return found.value if found else None


# --- reading


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"[boot]\ncommand=a b", b"a b"),
        (b"[boot]\ncommand = a b  \n", b"a b"),
        (b"[boot]\r\ncommand = a\r\n", b"a"),
        (b"\n  [BOOT]\t# now\n\tCommand\t=\ta # starts it\n", b"a"),
        (b'[boot]\ncommand = " a # b " # c\n', b" a # b "),
        (b'[boot]\ncommand = sh -c \\"a\\" \\\\\n', b'sh -c "a" \\'),
        (b"[boot]\ncommand = a \\\n  b\nsystemd=true\n", b"a   b"),
        (b"[boot]\ncommand = a\\nb\\tc\n", b"a\nb\tc"),
        (b"[boot]\ncommand =\n", b""),
        (b"[boot]\ncommand = \xc3\xa9t\xc3\xa9\n", b"\xc3\xa9t\xc3\xa9"),
        (b"[boot]\n# command = a\n", None),
        (b"command = a\n", None),
        (b"[bootx]\ncommand = a\n", None),
    ],
)
def test_a_value_is_what_wsl_makes_of_it(text: bytes, expected: bytes | None) -> None:
    assert value(text) == expected
    assert parse(text).stop is None


def test_the_first_of_several_counts_whichever_section_it_stands_in() -> None:
    conf = parse(
        b"[boot]\nsystemd=no\n[user]\ndefault=a\n[Boot]\nCOMMAND=1\nSystemd=1\ncommand=2\n"
    )
    assert conf.first(COMMAND) is conf.settings[2]
    # The first is no value that WSL knows; the second is not looked at all the same.
    assert conf.flag(SYSTEMD) is None
    said = "\n".join(conf.warnings)
    assert "boot.command is there more than once: line 6 counts, not 8" in said
    assert "boot.systemd is there more than once: line 2 counts, not 7" in said
    assert "line 2: boot.systemd is neither true nor false" in said


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        *((word, True) for word in (b"true", b"TRUE", b"1")),
        *((word, False) for word in (b"false", b"0")),
        *((word, None) for word in (b"yes", b"t", b"")),
    ],
)
def test_only_these_words_are_yes_or_no(text: bytes, flag: bool | None) -> None:
    assert parse(b"[boot]\nsystemd = " + text + b"\n").flag(SYSTEMD) is flag
    assert parse(b"").flag(SYSTEMD) is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"[boot]\ncommand=a\n[ boot ]\n", 3),
        (b"[boot]\ncommand=a\n[my-section]\n", 3),
        (b"[boot]\ncommand=a\n[boot] x\n", 3),
        (b"[boot]\ncommand=a\n[boot\n", 3),
        (b"[boot]\ncommand=a\n\nmy_key = b\n", 4),
        (b"[boot]\ncommand=a\nsystemd\n", 3),
        (b"[boot]\ncommand=a\n; no comment\n", 3),
        (b"[boot]\ncommand=a\n1key=b\n", 3),
        (b'[boot]\ncommand=a\nkey="b\n', 3),
        (b"[boot]\ncommand=a\nkey=\\x\n", 3),
        (b"[boot]\ncommand=a\nkey=\\\r\n", 3),
        (b"[boot]\ncommand=a\nkey=\\", 3),
    ],
)
def test_reading_ends_at_the_first_line_that_is_not_understood(text: bytes, line: int) -> None:
    conf = parse(text + b"[user]\ndefault=b\n")
    assert conf.stop is not None
    assert conf.stop.line == line
    assert conf.first(COMMAND) is not None
    assert conf.first("user.default") is None
    assert any(f"stops reading at line {line}" in said for said in conf.warnings)


def test_of_a_file_with_a_byte_order_mark_nothing_counts() -> None:
    conf = parse(BOM + FULL)
    assert conf.settings == ()
    assert conf.stop is not None
    assert conf.warnings == ("it begins with a byte order mark: WSL reads nothing of it",)


def test_windows_line_ends_are_told() -> None:
    assert any("Windows line ends" in said for said in parse(b"[user]\r\n").warnings)
    assert parse(FULL).warnings == ()


# --- writing


def test_a_command_is_added_behind_what_is_there() -> None:
    assert set_command(FULL, HOOK) == FULL + b"[boot]\n" + OURS
    assert set_command(b"", HOOK) == b"[boot]\n" + OURS
    assert set_command(b"[user]\ndefault=a", HOOK) == b"[user]\ndefault=a\n[boot]\n" + OURS


def test_a_command_is_added_to_the_section_that_is_there() -> None:
    before, after = b"[user]\ndefault=a\n[Boot] # x\n", b"systemd=false\n[network]\n"
    assert set_command(before + after, HOOK) == before + OURS + after
    assert set_command(b"[boot]", HOOK) == b"[boot]\n" + OURS


def test_a_command_takes_the_place_of_another() -> None:
    text = b"[boot]\nsystemd=0\ncommand = a \\\n  b # c\n[user]\n"
    assert set_command(text, HOOK) == b"[boot]\nsystemd=0\n" + OURS + b"[user]\n"


def test_line_ends_stay() -> None:
    text = FULL.replace(b"\n", b"\r\n")
    assert set_command(text, HOOK) == (FULL + b"[boot]\n" + OURS).replace(b"\n", b"\r\n")


def test_a_byte_order_mark_goes() -> None:
    assert set_command(BOM + FULL, HOOK) == FULL + b"[boot]\n" + OURS


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"[user]\ndefault=a\n", b"[my-section]\nx=1\n"),
        (b"[user]\ndefault=a\n", b"[network]\nhostname=b\nmy_key=1\n"),
        (b"", b"my_key=1\n"),
    ],
)
def test_a_command_comes_before_the_place_where_wsl_stops(before: bytes, after: bytes) -> None:
    text = set_command(before + after, HOOK)
    assert text == before + b"[boot]\n" + OURS + after
    assert value(text) == HOOK.encode()


FILES = st.lists(
    st.sampled_from(
        [
            b"[boot]",
            b"[Boot] # c",
            b"[user]",
            b"[my-section]",
            b"[ boot ]",
            b"command = a",
            b'command = "a',
            b"COMMAND=b \\",
            b"systemd=true",
            b"default = x # y",
            b"# note",
            b"",
            b"no",
        ]
    )
)


@given(FILES, st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_whatever_is_there_the_command_counts_and_can_be_taken_out(
    lines: list[bytes], newline: bytes, ended: bool
) -> None:
    before = newline.join(lines) + (newline if ended else b"")
    there = parse(before).first(COMMAND)
    after = set_command(before, HOOK)
    assert value(after) == HOOK.encode()
    assert set_command(after, HOOK) == after
    earlier = before[there.start : there.end] if there else None
    again = unset_command(after, HOOK, earlier)
    if there is not None:
        assert again == before
    else:
        assert value(again) is None or parse(before).stop is not None
    # Nothing that somebody else has written is lost.
    assert set(lines) - set(again.splitlines()) <= {b"", b"[boot]"}


@given(st.binary())
def test_any_bytes_give_a_value(data: bytes) -> None:
    conf = parse(data)
    assert all(0 <= item.start < item.end <= len(data) for item in conf.settings)
    assert value(set_command(data, HOOK)) == HOOK.encode()


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\0")))
def test_a_value_is_read_back_as_it_was_written(command: str) -> None:
    assert value(set_command(FULL, command)) == command.encode()


# --- taking out


@pytest.mark.parametrize(
    "before",
    [FULL, b"", b"[boot]\nsystemd=0\n[user]\ndefault=a\n", FULL.replace(b"\n", b"\r\n")],
)
def test_what_was_added_is_taken_out_again(before: bytes) -> None:
    assert unset_command(set_command(before, HOOK), HOOK, None) == before


def test_the_command_that_was_there_comes_back() -> None:
    line = b"Command= service cron start # mine\n"
    before = b"[boot]\n" + line + b"[user]\ndefault=a\n"
    assert unset_command(set_command(before, HOOK), HOOK, line) == before


def test_a_command_of_somebody_else_stays() -> None:
    for text in (b"[boot]\ncommand=a\ncommand=" + HOOK.encode() + b"\n", FULL):
        assert unset_command(text, HOOK, b"command=b\n") == text


def test_what_was_added_to_our_section_since_stays() -> None:
    text = set_command(FULL, HOOK) + b"systemd=false\n"
    assert unset_command(text, HOOK, None) == FULL + b"[boot]\nsystemd=false\n"
