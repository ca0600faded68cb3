"""Reading the catalogue's file: what is in it, and every fault with its place and a hint."""

from __future__ import annotations

import pytest

from ramnet.core.catalog import HTTPS, Catalog, CatalogEntry, Source, parse_catalog
from ramnet.core.catalogfile import MAX_NOTE
from ramnet.core.names import parse_host, parse_pattern
from ramnet.errors import PolicyError

HOST = 'name = "r.example", role = "api", source = "V", registry_only = true, shared = false'


def document(
    *, key: str = "r.example", head: str = "", hosts: str = f"{{ {HOST} }}", tail: str = ""
) -> str:
    return f"""
version = 1
[[registry]]
key = "{key}"
title = "R"
sources = {{ V = "its manual" }}
{head}
hosts = [{hosts}]
{tail}
"""


def lookup(catalog: Catalog, text: str) -> CatalogEntry | None:
    return catalog.lookup(parse_pattern(text))


def names(entry: CatalogEntry | None) -> set[str]:
    assert entry is not None
    return {str(host.pattern) for host in entry.hosts}


def test_a_small_catalogue() -> None:
    catalog = parse_catalog(
        document(
            head='aliases = ["hub.example"]',
            hosts=f"{{ {HOST} }}, {{ {HOST.replace('r.ex', '*.ex')}, ports = [80, 443] }}",
        ),
        source="x.toml",
    )
    entry = lookup(catalog, "hub.example")
    assert entry is not None
    first, second = entry.hosts
    assert (first.source, first.cite, first.ports) == (Source.VENDOR, "its manual", HTTPS)
    assert (first.registry_only, first.shared) == (True, False)
    assert (str(second.pattern), second.ports) == ("*.example", frozenset({80, 443}))


def test_a_placeholder_must_have_one_value_throughout() -> None:
    catalog = parse_catalog(
        document(key="x-{a}.{a}.example", hosts=f"{{ {HOST.replace('r.', '{a}.')} }}"),
        source="x.toml",
    )
    assert names(lookup(catalog, "x-one.one.example")) == {"one.example"}
    assert lookup(catalog, "x-one.two.example") is None


def test_values_make_one_registry_each() -> None:
    text = document(
        key="{a}.example",
        head='aliases = ["www.{a}.example"]\nvalues = { a = ["one", "two"] }\nnote = "Two."',
        hosts=f"{{ {HOST.replace('r.', '{a}.')} }}",
    )
    catalog = parse_catalog(text.replace('"R"', '"The {a}"'), source="x.toml")
    assert [(entry.key, entry.title, entry.note) for entry in catalog] == [
        ("one.example", "The one", "Two."),
        ("two.example", "The two", "Two."),
    ]
    assert names(lookup(catalog, "www.two.example")) == {"two.example"}
    assert lookup(catalog, "three.example") is None
    assert lookup(catalog, "*.example") is None


def test_hosts_of_a_region_and_those_of_the_default_one() -> None:
    more = HOST.replace("r.", "{region}.").replace("api", "blob")
    text = document(head='default_regions = ["eu-west-1"]', hosts=f"{{ {HOST} }}, {{ {more} }}")
    entry = lookup(parse_catalog(text, source="x.toml"), "r.example")
    assert entry is not None
    assert names(entry) == {"r.example", "eu-west-1.example"}
    host = entry.host_of(parse_host("eu-west-2.example"))
    assert host is not None
    assert (host.region, host.optional) == ("eu-west-2", False)
    default = entry.host_of(parse_host("eu-west-1.example"))
    assert default is not None
    assert default.region == ""
    assert entry.host_of(parse_host("r2.example")) is None


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("version = ", "", "not TOML"),
        ("", "version", "is missing"),
        ("", "registry", "is missing"),
        (document().replace("version = 1", "version = 2"), "version", "2 is unknown"),
        (document().replace("version = 1", "version = true"), "version", "found true or false"),
        (document().replace("version = 1", "version = 1\nextra = 1"), "extra", "not a known key"),
        ("version = 1\nregistry = [1]", "registry[0]", "expected a table, found an integer"),
        ("version = 1\nregistry = 1.5", "registry", "expected a list, found a float"),
        (document(head="color = 1"), "registry[0].color", "not a known key"),
        (document().replace('title = "R"', ""), "registry[0].title", "is missing"),
        (document().replace('"R"', "5"), "registry[0].title", "expected a string"),
        (document(head="aliases = [1]"), "registry[0].aliases", "a list of strings"),
        (document(key="R.example"), "registry[0].key", "canonical"),
        (document(key="a.*"), "registry[0].key", "last label"),
        (document(key="a.*.example"), "registry[0].key", "misplaced *"),
        (document(key="{a}{b}.example"), "registry[0].key", "two placeholders"),
        (document(key="{a.example"), "registry[0].key", "'{'"),
        (
            document(key="{a}.example", head='aliases = ["b.example"]'),
            "registry[0].aliases",
            "other placeholders",
        ),
        (
            document(head='aliases = ["{a}.example"]'),
            "registry[0].aliases",
            "other placeholders",
        ),
        (
            document() + document().replace("version = 1", ""),
            "registry[1].key",
            "already names registry[0]",
        ),
        (document(hosts=""), "registry[0].hosts", "no host has the role api"),
        (
            document(hosts=f"{{ {HOST.replace('api', 'blob')} }}"),
            "registry[0].hosts",
            "no host has the role api",
        ),
        (document(hosts="1"), "registry[0].hosts[0]", "expected a table"),
        (
            document(hosts=f"{{ {HOST.replace('api', 'cdn')} }}"),
            "registry[0].hosts[0].role",
            "'cdn' is not known",
        ),
        (
            document(hosts=f"{{ {HOST.replace('V', 'X')} }}"),
            "registry[0].hosts[0].source",
            "'X' is not known",
        ),
        (
            document(hosts=f"{{ {HOST.replace('V', 'M')} }}"),
            "registry[0].hosts[0].source",
            "nothing is cited for M",
        ),
        (
            document(hosts=f"{{ {HOST.replace('true', '1')} }}"),
            "registry[0].hosts[0].registry_only",
            "expected true or false",
        ),
        (
            document(hosts=f"{{ {HOST.replace(', shared = false', '')} }}"),
            "registry[0].hosts[0].shared",
            "is missing",
        ),
        (
            document(hosts=f"{{ {HOST}, port = 80 }}"),
            "registry[0].hosts[0].port",
            "not a known key",
        ),
        (
            document(hosts=f"{{ {HOST}, ports = [] }}"),
            "registry[0].hosts[0].ports",
            "different ports",
        ),
        (
            document(hosts=f'{{ {HOST}, ports = ["443"] }}'),
            "registry[0].hosts[0].ports",
            "different ports",
        ),
        (
            document(hosts=f"{{ {HOST}, ports = [70000] }}"),
            "registry[0].hosts[0].ports",
            "70000 does not exist",
        ),
        (
            document(hosts=f"{{ {HOST.replace('r.', 'r..')} }}"),
            "registry[0].hosts[0].name",
            "empty label",
        ),
        (
            document(hosts=f"{{ {HOST.replace('r.', '{a}.')} }}"),
            "registry[0].hosts[0].name",
            "the key does not have: 'a'",
        ),
        # fillings that would not be host names are found when the file is read, not when asked
        (
            document(key="{a}.example", hosts=f"{{ {HOST.replace('r.', 'x-{a}.')} }}"),
            "registry[0].hosts[0].name",
            "misplaced *",
        ),
        (
            document(key="x-{a}.example", hosts=f"{{ {HOST.replace('r.', '{a}-{a}.')} }}"),
            "registry[0].hosts[0].name",
            "two placeholders in one label",
        ),
        (
            document(
                key="x-{a}.example", hosts=f"{{ {HOST.replace('r.', '{a}' + 'x' * 32 + '.')} }}"
            ),
            "registry[0].hosts[0].name",
            "too long",
        ),
        (
            document(hosts=f"{{ {HOST.replace('r.example', 'r.{region}')} }}"),
            "registry[0].hosts[0].name",
            "last label",
        ),
        (
            document(hosts=f"{{ {HOST.replace('r.', '{region}.{azure}.')} }}"),
            "registry[0].hosts[0].name",
            "the key does not have: 'azure'",
        ),
        (
            document(key="r.{a}.example"),
            "registry[0].hosts[0].name",
            "does not tell 'a'",
        ),
        (
            document(hosts=f"{{ {HOST.replace('V', 'U')} }}", head="").replace(
                'V = "its', 'U = "its'
            ),
            "registry[0].hosts[0].registry_only",
            "an unverified host would be refused",
        ),
        (
            document(head='default_regions = ["eu-west-1"]'),
            "registry[0].default_regions",
            "no host has 'eu-west-1' in it",
        ),
        (
            document(head=f'note = "{"x" * (MAX_NOTE + 1)}"'),
            "registry[0].note",
            "has 241 characters",
        ),
        (
            document(head='values = { a = ["b"] }'),
            "registry[0].values.a",
            "not a known key",
        ),
        (document(head="values = 1"), "registry[0].values", "expected a table"),
        (
            document(key="{a}.example", head="values = { a = [1] }"),
            "registry[0].values.a",
            "a list of strings",
        ),
    ],
)
def test_faults_of_the_file_say_where_and_what(text: str, place: str, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_catalog(text, source="x.toml")
    assert "x.toml" in str(caught.value)
    faults = [fault for fault in caught.value.faults if fault.place == place]
    assert any(message in fault.message for fault in faults), caught.value.faults
    assert all(fault.hint for fault in caught.value.faults)


def test_all_faults_are_reported_at_once() -> None:
    text = document(head="color = 1", hosts=f"{{ {HOST.replace('api', 'cdn')}, port = 80 }}")
    with pytest.raises(PolicyError) as caught:
        parse_catalog(text, source="x.toml")
    assert [fault.place for fault in caught.value.faults] == [
        "registry[0].color",
        "registry[0].hosts[0].role",
        "registry[0].hosts[0].port",
        "registry[0].hosts",
    ]
