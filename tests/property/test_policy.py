"""Any bytes give a policy or a PolicyError, and a fault's line is where its key stands."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from ramnet.core.config import parse_config
from ramnet.core.policy import Policy, canonical_policy, parse_policy, policy_digest
from ramnet.core.textfile import Finding, KeyPath, read_document
from ramnet.errors import PolicyError

VERSION = "0.1.0"
TOKENS = st.sampled_from(
    [
        *("version = 1\n", 'organization = "a"\n', "[[registry]]\n", "[registry]\n", "[support]\n"),
        *(
            "address",
            "networks",
            "x-",
            "ports",
            "\n",
            "\r\n",
            "\r",
            "#",
            " ",
            '"',
            "'",
            '"""',
            "'''",
        ),
        *("[", "]", "[[", "]]", "{", "}", "=", ",", ".", ":", "\\", "\\u0041", "\ufeff", "\ud800"),
        *(
            "1",
            "true",
            "null",
            "1e5",
            "nan",
            "-inf",
            "2027-01-31",
            "07:32:00",
            "0x1",
            "\u00e9",
            "\0",
        ),
    ]
)
TEXT = st.one_of(st.lists(TOKENS, max_size=30).map("".join), st.text(max_size=60))
SOURCE = st.sampled_from(["policy.toml", "policy.json"])


def judge(data: str | bytes, source: str) -> Policy | None:
    """Parse as either kind of file; every fault must be fit to print."""
    policy = None
    try:
        policy = parse_policy(data, source=source, ramnet_version=VERSION)
    except PolicyError as error:
        check(error)
    try:
        parse_config(data, source=source)
    except PolicyError as error:
        check(error)
    return policy


def check(error: PolicyError) -> None:
    assert error.faults
    lines = [fault.line or 0 for fault in error.faults]
    assert lines == sorted(lines)
    for fault in error.faults:
        assert fault.message
        assert f"{fault.message}{fault.hint}{fault.place}".isprintable()


@given(TEXT, SOURCE)
@example('version = 1\norganization = "a"\n"x\\\\" = 1', "policy.toml")
def test_any_text_gives_a_policy_or_its_faults(text: str, source: str) -> None:
    judge(text, source)


@given(st.one_of(st.binary(max_size=80), TEXT.map(lambda t: t.encode(errors="replace"))), SOURCE)
def test_any_bytes_give_a_policy_or_its_faults(data: bytes, source: str) -> None:
    judge(data, source)


ANY_VALUE = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def loosely(table: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """Make tables with some of the keys, each with a good value or with anything."""
    return st.fixed_dictionaries(
        {}, optional={k: st.one_of(v, ANY_VALUE) for k, v in table.items()}
    )


LABEL = st.from_regex(r"[a-z]{1,5}", fullmatch=True)
HOST = st.tuples(st.sampled_from(["", "*."]), LABEL).map(
    lambda parts: f"{parts[0]}{parts[1]}.example"
)
ADDRESS = st.tuples(HOST, st.sampled_from(["", ":5000", ":*"])).map("".join)
NETWORK = st.one_of(st.ip_addresses(v=4).map(str), st.sampled_from(["10.0.0.0/8", "2001:db8::/32"]))
REGISTRY = {
    "address": ADDRESS,
    "nickname": LABEL,
    "extra_hosts": st.lists(HOST, max_size=2),
    "networks": st.lists(NETWORK, max_size=2),
    "regions": st.lists(st.sampled_from(["eu-west-1", "us-west1", "westeurope"]), max_size=2),
    "unverified_hosts": st.booleans(),
    "expires": st.dates().map(str),
    "reason": LABEL,
}
DESTINATION = {
    "address": HOST,
    "ports": st.lists(st.integers(1, 65535), max_size=2),
    "reason": LABEL,
}
ENFORCEMENT = {
    "mode": st.sampled_from(["enforce", "audit"]),
    "engine": st.sampled_from(["strict", "catalog", "off"]),
    "containers": st.sampled_from(["strict", "catalog", "off"]),
    "on_deny": st.sampled_from(["notice", "reject", "drop"]),
}


def exactly(table: dict[str, st.SearchStrategy[Any]], *required: str) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {key: table[key] for key in required},
        optional={key: value for key, value in table.items() if key not in required},
    )


GOOD = st.fixed_dictionaries(
    {"version": st.just(1), "organization": LABEL},
    optional={
        "min_ramnet": st.sampled_from(["0", "0.1", "0.1.0"]),
        "support": exactly({"contact": LABEL}),
        "registry": st.lists(
            exactly(REGISTRY, "address"), max_size=3, unique_by=lambda entry: entry["address"]
        ),
        "destination": st.lists(exactly(DESTINATION, "address"), max_size=2),
        "enforcement": exactly(ENFORCEMENT),
        "x-note": ANY_VALUE,
    },
)
NEARLY = st.tuples(
    GOOD,
    loosely(
        {
            "version": st.just(1),
            "organization": LABEL,
            "support": loosely({"contact": LABEL}),
            "registry": st.lists(loosely(REGISTRY), max_size=3),
            "destination": st.lists(loosely(DESTINATION), max_size=3),
            "enforcement": loosely(ENFORCEMENT),
            "other": ANY_VALUE,
        }
    ),
).map(lambda parts: parts[0] | parts[1])


@given(NEARLY, st.sampled_from([None, 2]))
def test_tables_of_any_values_give_a_policy_or_its_faults(data: Any, indent: int | None) -> None:
    judge(json.dumps(data, indent=indent), "policy.json")


@given(GOOD, st.randoms(use_true_random=False))
def test_a_good_policy_survives_its_canonical_form(data: dict[str, Any], random: Any) -> None:
    policy = judge(json.dumps(data), "policy.json")
    assert policy is not None
    again = judge(json.dumps(canonical_policy(policy)), "policy.json")
    assert again is not None
    assert canonical_policy(again) == canonical_policy(policy)
    keys = list(data)
    random.shuffle(keys)
    other = judge(json.dumps({key: data[key] for key in keys}, indent=1), "policy.json")
    assert other is not None
    assert policy_digest(other) == policy_digest(again) == policy_digest(policy)


# Lines. Every leaf is a number of its own, so the line that shows the number is the right one.

KEY = st.one_of(
    LABEL, st.sampled_from(["a.b", "]", "#", '"', "\\", "\n", "\u00e9", "[[x]]", "=", ""])
)
SHAPE: st.SearchStrategy[Any] = st.recursive(
    st.just(0),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEY, inner, max_size=3)),
    max_leaves=12,
)
TABLE = st.dictionaries(KEY, SHAPE, max_size=4)


def numbered(value: Any, leaves: dict[KeyPath, int], path: KeyPath = ()) -> Any:
    """Replace each leaf by a number of five digits, and note its path."""
    if isinstance(value, dict):
        return {key: numbered(item, leaves, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [numbered(item, leaves, (*path, index)) for index, item in enumerate(value)]
    leaves[path] = 10_000 + len(leaves)
    return leaves[path]


def check_lines(text: str, source: str, leaves: dict[KeyPath, int]) -> None:
    rows = text.split("\n")
    document = read_document(text, source=source)
    for path, number in leaves.items():
        (fault,) = document.faults([Finding(path, "here")])
        assert fault.line is not None
        assert str(number) in rows[fault.line - 1]


@given(TABLE, st.sampled_from([None, 0, 2]))
def test_lines_of_json(table: dict[str, Any], indent: int | None) -> None:
    leaves: dict[KeyPath, int] = {}
    text = json.dumps(numbered(table, leaves), indent=indent, ensure_ascii=False)
    check_lines(text, "policy.json", leaves)


class TomlWriter:
    """Writes tables as TOML, in one of the many ways that TOML allows, as ``draw`` says."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw

    def one_of(self, *options: str) -> str:
        return str(self.draw(st.sampled_from(options)))

    def key(self, key: str) -> str:
        if key.isascii() and key.isalpha():
            return self.one_of(key, f'"{key}"', f"'{key}'", f' "{key}" ')
        return json.dumps(key, ensure_ascii=False)

    def value(self, value: Any) -> str:
        if isinstance(value, dict):
            return (
                "{" + ", ".join(f"{self.key(k)} = {self.value(v)}" for k, v in value.items()) + "}"
            )
        if isinstance(value, list):
            gap = self.one_of("", " ", "\n", " # ]\n", "\r\n\t")
            return "[" + "".join(f"{gap}{self.value(item)}{gap}," for item in value) + f"{gap}]"
        return self.one_of(
            str(value), f'"{value} \\" ] }}"', f"'{value} # \"'", f"'''{value}\n]'''"
        )

    def table(self, table: dict[str, Any], path: tuple[str, ...] = ()) -> str:
        """Write the plain keys of a table, then its tables under headers of their own."""
        plain, below = "", ""
        for key, value in table.items():
            header = ".".join(self.key(part) for part in (*path, key))
            tables = isinstance(value, list) and value and all(isinstance(i, dict) for i in value)
            if isinstance(value, dict) and self.draw(st.booleans()):
                below += f"[{header}]\n{self.table(value, (*path, key))}"
            elif tables and self.draw(st.booleans()):
                for item in value:
                    below += f"[[{header}]] # [x]\n{self.table(item, (*path, key))}"
            else:
                plain += f"{self.key(key)} = {self.value(value)}{self.one_of('', ' # = 1')}\n"
        return f"{plain}{self.one_of('', '# a = 1', ' ')}\n{below}"


@given(TABLE, st.data())
def test_lines_of_toml(table: dict[str, Any], data: st.DataObject) -> None:
    leaves: dict[KeyPath, int] = {}
    text = TomlWriter(data.draw).table(numbered(table, leaves))
    check_lines(text, "policy.toml", leaves)
