from __future__ import annotations

import json
from datetime import UTC, date, datetime, time
from enum import StrEnum
from typing import Annotated

import pytest
from pydantic import BaseModel, ConfigDict

from ramnet.core import textfile
from ramnet.core.textfile import (
    Document,
    Finding,
    Format,
    choice,
    kind_of,
    line_of_text,
    place,
    read_document,
    shown,
    tables_of,
    validate,
    whole,
)
from ramnet.errors import Fault, PolicyError


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, line_of_text(5)]
    size: Annotated[int, whole(1, 9)] = 1


class Box(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    colour: Annotated[Colour, choice(Colour)] = Colour.RED
    item: tuple[Item, ...] = ()
    inner: Item | None = None
    sizes: tuple[Annotated[int, whole(1, 9)], ...] = ()


KNOWN = {
    (): tuple(Box.model_fields),
    ("item",): tuple(Item.model_fields),
    ("inner",): tuple(Item.model_fields),
}


def read(text: str | bytes, source: str = "box.toml") -> Box:
    return validate(read_document(text, source=source), Box, KNOWN)


def faults_of(text: str | bytes, source: str = "box.toml") -> tuple[Fault, ...]:
    with pytest.raises(PolicyError) as caught:
        read(text, source)
    assert caught.value.source == source
    return caught.value.faults


def only_fault(text: str | bytes, source: str = "box.toml") -> Fault:
    (fault,) = faults_of(text, source)
    return fault


def line_of(text: str, path: tuple[str | int, ...], source: str = "box.toml") -> int | None:
    (fault,) = read_document(text, source=source).faults([Finding(path, "here")])
    return fault.line


def test_toml_and_json_say_the_same() -> None:
    toml = 'colour = "green"\nsizes = [1, 2]\n[[item]]\nname = "a"\n'
    box = {"colour": "green", "sizes": [1, 2], "item": [{"name": "a"}]}
    assert read(toml) == read(json.dumps(box), "box.json") == read(json.dumps(box), "BOX.JSON")


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfsizes = [3]\r\n",
        "\ufeffsizes = [3]\r\n",
        b"sizes = [\r\n  3,\r\n]",
        "sizes=[3]",
    ],
)
def test_byte_order_mark_and_line_endings(data: str | bytes) -> None:
    assert read(data).sizes == (3,)


def test_extension_keys_are_ignored_at_any_level() -> None:
    toml = 'x-a = 1\n[x-b.c]\nd = 2\n[[item]]\nname = "a"\nx-e = {f = [1]}\n'
    assert read(toml) == read('[[item]]\nname = "a"')
    escaped = r'{"\u0078-a": 1, "item": [{"name": "a", "x\u002db": [[{}]]}]}'
    assert read(escaped, "box.json") == read(toml)


def test_no_value_and_no_key_named_like_an_extension_is_lost() -> None:
    assert read('[[item]]\nname = "x-a"').item[0].name == "x-a"
    assert only_fault("ax-b = 1").place == "ax-b"


@pytest.mark.parametrize("source", ["box.toml", "box.json"])
def test_an_empty_file_is_an_empty_table(source: str) -> None:
    assert read(" \n", source) == Box()


@pytest.mark.parametrize(
    ("data", "source", "line", "message", "hint"),
    [
        (b"a = 1\nb = '\xff'", "b.toml", 2, "byte 0xff is not UTF-8", "save the file as UTF-8"),
        (b"\xff\xfea\0", "b.toml", 1, "byte 0xff is not UTF-8", "save the file as UTF-8"),
        ("[1]", "b.json", 1, "the file holds a list, not a table of keys", "start with {"),
        ("null", "b.json", 1, "the file holds null, not a table of keys", "start with {"),
        ("a = 1\nb = = 2", "b.toml", 2, "not valid TOML: ", "read as TOML"),
        ("a = 1\na = 2", "b.toml", 2, "not valid TOML: ", "read as TOML"),
        ("a = 1\n\nb = '''", "b.toml", 3, "not valid TOML: ", "read as TOML"),
        ('{"a": 1}', "b.toml", 1, "not valid TOML: ", "a name that ends in .json"),
        ('{"a": 1,\n b}', "b.json", 2, "not valid JSON: ", "read as JSON"),
        ("a = " + "[" * 99999, "b.toml", None, "the file is nested too deeply", "three levels"),
        ('{"a":' + "[" * 99999, "b.json", None, "the file is nested too deeply", "three levels"),
        ("a = " + "9" * 5000, "b.toml", None, "a number or a date in the file is out of", "TOML"),
        ('{"a":' + "9" * 5000 + "}", "b.json", None, "a number or a date in the file", "JSON"),
    ],
)
def test_what_does_not_parse(
    data: str | bytes, source: str, line: int | None, message: str, hint: str
) -> None:
    fault = only_fault(data, source)
    assert (fault.place, fault.line) == ("", line)
    assert fault.message.startswith(message)
    assert hint in fault.hint


def test_a_file_beyond_the_limit_is_not_even_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfile, "MAX_FILE_BYTES", 1024 * 1024)
    assert read(b" " * 1024 * 1024) == Box()
    for data in (b"\xff" * (1024 * 1024 + 1), "=" * (1024 * 1024 + 1)):
        fault = only_fault(data)
        assert (fault.message, fault.hint) == ("the file is too large", "the limit is 1 MiB")


def test_all_faults_are_told_in_the_order_of_the_file() -> None:
    toml = """\
colour = "gren"
sizes = [
  1,
  10,
]
[[item]]
size = 1
[[item]]
name = "a"
size = true
nane = "b"
[inner]
name = "toolong"
"""
    assert faults_of(toml) == (
        Fault("colour", 1, "'gren' is not one of red, green", "did you mean green?"),
        Fault("sizes[1]", 4, "must be from 1 to 9", ""),
        Fault("item[0].name", 6, "is missing", "add name = ..."),
        Fault("item[1].size", 10, "must be a whole number, not a boolean", "1 to 9"),
        Fault("item[1].nane", 11, "unknown key", "did you mean name?"),
        Fault("inner.name", 13, "is 7 characters long; the limit is 5", ""),
    )


def test_hints_for_unknown_keys() -> None:
    hints = {fault.place: fault.hint for fault in faults_of("size = 1\ncolor = 1\nwhatever = 1")}
    assert hints == {
        "size": "it belongs in [item] or [inner]",
        "color": "did you mean colour?",
        "whatever": "known keys here: colour, item, inner, sizes",
    }
    assert (
        only_fault('[[item]]\nname="a"\ncolour="red"').hint == "it belongs in the top of the file"
    )


@pytest.mark.parametrize(
    ("text", "where", "message", "hint"),
    [
        ("item = 1", "item", "must be a list, not a number", "write [[item]]"),
        ('[item]\nname = "a"', "item", "must be a list, not a table", "write [[item]]"),
        ('sizes = "1"', "sizes", "must be a list, not a string", "write [...]"),
        ("item = [1.5]", "item[0]", "must be a table, not a number with a fraction", ""),
        ("inner = []", "inner", "must be a table, not a list", ""),
        ("colour = 1", "colour", "must be a string, not a number", "put it in quotes"),
        ("colour = ''", "colour", "'' is not one of red, green", ""),
        ("sizes = [1.0]", "sizes[0]", "must be a whole number, not a number with", "1 to 9"),
        ("inner.name = ''", "inner.name", "must not be empty", ""),
        ("inner.name = '  '", "inner.name", "must not be empty", ""),
        ("inner.name = ' a'", "inner.name", "begins or ends with a space", ""),
        (r'inner.name = "a\u202eb"', "inner.name", r"holds '\u202e', which is not", "plain"),
        ("inner.name = 2027-01-31", "inner.name", "must be a string, not a date", "quotes"),
    ],
)
def test_values_of_the_wrong_kind(text: str, where: str, message: str, hint: str) -> None:
    fault = only_fault(text)
    assert (fault.place, fault.line) == (where, 1)
    assert fault.message.startswith(message)
    assert hint in fault.hint


def test_a_key_given_twice_in_json() -> None:
    text = '{"x-a": {"b": 1, "b": 2}, "x-a": 1,\n "inner": {"name": "a",\n "name": "b"}}'
    assert only_fault(text, "b.json") == Fault(
        "inner.name", 2, "is given more than once in its table", "keep one of them"
    )
    twice = '{"inner": {"name": "a"}, "inner": {"name": "b"}, "colour": 1}'
    assert [fault.place for fault in faults_of(twice, "b.json")] == ["inner", "colour"]


def test_rules_across_keys_are_told_with_the_rest() -> None:
    def check(box: Box | None, data: dict[str, object]) -> list[Finding]:
        assert box is None
        return [Finding(("sizes", 1), f"{len(data)} keys; see", "hint", first=("colour",))]

    document = read_document("colour = 1\nsizes = [1,\n2]", source="b.toml")
    with pytest.raises(PolicyError) as caught:
        validate(document, Box, KNOWN, check)
    assert caught.value.faults[1] == Fault("sizes[1]", 3, "2 keys; see colour, line 1", "hint")

    def pass_all(box: Box | None, data: dict[str, object]) -> list[Finding]:
        assert box == Box()
        assert data == {}
        return []

    assert validate(read_document("", source="b.toml"), Box, KNOWN, pass_all) == Box()


def test_the_number_of_faults_is_bounded() -> None:
    faults = faults_of(json.dumps({"sizes": [0] * 3000}), "b.json")
    assert len(faults) == textfile.MAX_FAULTS + 1
    assert faults[-1].message == "and 2000 more faults"


LINES = """\
# sizes = [9]

"quoted key".'a.b' . c = 1 # a.b = 2
"esc\\u0061pe\\U0001F600" = '#'
text = \"\"\"
[[item]] # "
\\\"""x\"\"\"\"\"
raw = '''
]]'''''
day = 1979-05-27 07:32:00
list = [ # [
  1, [2,
  3], {a.b = 4, c = [5,
  6]},
  "], ",
]

[[item]]
  name = "]"
  [[item.part]]
  a = 1
  [item.part.deep]
  b = 1
  [[item.part]]
[[ item ]]
name = ""
[[item."part"]]
a = 2
[ last ]
end = 0
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("quoted key",), 3),
        (("quoted key", "a.b", "c"), 3),
        (("escape\U0001f600",), 4),
        (("text",), 5),
        (("raw",), 8),
        (("day",), 10),
        (("list",), 11),
        (("list", 0), 12),
        (("list", 1, 0), 12),
        (("list", 1, 1), 13),
        (("list", 2, "a", "b"), 13),
        (("list", 2, "c", 1), 14),
        (("list", 3), 15),
        (("item",), 18),
        (("item", 0), 18),
        (("item", 0, "name"), 19),
        (("item", 0, "part", 0, "a"), 21),
        (("item", 0, "part", 0, "deep", "b"), 23),
        (("item", 0, "part", 1), 24),
        (("item", 1), 25),
        (("item", 1, "part", 0, "a"), 28),
        (("last", "end"), 30),
        (("last", "absent"), 29),
        (("list", 9), 11),
        (("absent", 1), None),
        ((), None),
    ],
)
def test_lines_of_toml(path: tuple[str | int, ...], line: int | None) -> None:
    assert line_of(LINES, path) == line
    assert line_of(LINES.replace("\n", "\r\n"), path) == line


def test_lines_of_json() -> None:
    text = (
        '{"a": [1, {"]": "\\"}",\n "b": [[],\n {}]}],\n "\\ud83d\\ude00":\n {"c": -1.5e3}, "d": ""}'
    )
    expected = {
        ("a", 0): 1,
        ("a", 1, "]"): 1,
        ("a", 1, "b"): 2,
        ("a", 1, "b", 1): 3,
        ("\U0001f600",): 4,
        ("\U0001f600", "c"): 5,
        ("d",): 5,
    }
    assert {path: line_of(text, path, "b.json") for path in expected} == expected


def test_a_document_says_its_format() -> None:
    assert read_document("", source="a.toml") == Document("a.toml", Format.TOML, "", {})
    assert read_document("{}", source="a.json").format is Format.JSON


def test_places_and_values_are_shown_in_plain_ascii() -> None:
    assert place(("registry", 1, "extra_hosts", 0)) == "registry[1].extra_hosts[0]"
    assert place(("a b", "\n")) == r"'a b'.'\n'"
    assert shown("\u00e9\ud800\n") == r"'\xe9\ud800\n'"
    assert shown("a" * 61) == f"'{'a' * 60}...'"


def test_kinds_of_values() -> None:
    values: tuple[object, ...] = (
        True,
        1,
        1.5,
        "",
        [],
        {},
        None,
        date.max,
        datetime.now(UTC),
        time.max,
    )
    assert [kind_of(value) for value in values] == [
        "a boolean",
        "a number",
        "a number with a fraction",
        "a string",
        "a list",
        "a table",
        "null",
        "a date",
        "a date with a time",
        "a time",
    ]


# Where tables are


@pytest.mark.parametrize(
    ("text", "tables"),
    [
        ("", []),
        ("a = 1\n", []),
        ("[[r]]\n", ["[[r]]\n"]),
        ("a = 1\n[[r]]\nb = 1\n# c\n", ["[[r]]\nb = 1\n# c\n"]),
        ("  [[ r ]]\nb = 1\n[s]\n[['r']]\n", ["  [[ r ]]\nb = 1\n", "[['r']]\n"]),
        (
            "[[r]]\n[r.x]\na = 1\n[r.x.y]\n[s]\n[[r]]\n",
            ["[[r]]\n[r.x]\na = 1\n[r.x.y]\n", "[[r]]\n"],
        ),
        ("[[r]]\nb = [\n[1],\n]\n[s]\n[r.x]\n", ["[[r]]\nb = [\n[1],\n]\n"]),
        ('[[s]]\nr = "[[r]]"\n[[s.r]]\n[[s.r]]\n', []),
        ("r = [{a = 1}, {a = 2}]\n", []),
        ('[[r]]\na = """\n[[r]]\n"""\n[[r]]', ['[[r]]\na = """\n[[r]]\n"""\n', "[[r]]"]),
    ],
)
def test_where_the_tables_of_a_list_are(text: str, tables: list[str]) -> None:
    assert [text[start:end] for start, end in tables_of(text, "r")] == tables


def test_the_line_of_a_key_and_of_one_that_is_missing() -> None:
    read = read_document("a = 1\n\n[[b]]\nc = [\n1,\n2]\n", source="x.toml")
    paths = [("a",), ("b", 0, "c", 1), ("b", 0, "d"), ("e",), ()]
    assert read.lines(paths) == {("a",): 1, ("b", 0, "c", 1): 6, ("b", 0, "d"): 3}
