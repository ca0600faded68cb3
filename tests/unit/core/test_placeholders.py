"""Placeholders in the names of the catalogue, and the forms of the clouds' regions."""

from __future__ import annotations

import pytest

from ramnet.core.placeholders import (
    CLOUDS,
    MAX_FILL,
    capture,
    fill,
    fits,
    fixed_suffix,
    is_region,
    placeholders,
)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("region", "eu-west-1 us-east-2 us-gov-west-1 ap-southeast-7 us-iso-east-1 me-central-1"),
        ("location", "us-west1 europe-west12 northamerica-northeast1 us europe asia"),
        ("azure", "westeurope eastus2 germanywestcentral eastus2euap uksouth"),
    ],
)
def test_what_a_region_looks_like(kind: str, values: str) -> None:
    for value in values.split():
        assert [cloud for cloud in CLOUDS if fits(cloud, value)][:1], value
        assert fits(kind, value), value
        assert is_region(value)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("region", "us-west1 west-1 eu-west- eu-west-100 e-west-1 eu-west-1x EU-WEST-1 eu--west-1"),
        ("location", "eu-west-1 uswest1 us-west france us-1 us-west100"),
        ("azure", "eu-west-1 us west1europe2 2eastus abc"),
    ],
)
def test_what_is_no_region_of_that_cloud(kind: str, values: str) -> None:
    for value in values.split():
        assert not fits(kind, value), value


@pytest.mark.parametrize("text", ["", "*", "eu", "a.b", "eu_west_1", "eu-west-1\n", "x" * 33, "é"])
def test_what_is_no_region_at_all(text: str) -> None:
    assert not is_region(text)


def test_any_other_placeholder_takes_what_a_label_may_hold() -> None:
    assert fits("tenant", "a" * MAX_FILL)
    for bad in ("", "a" * (MAX_FILL + 1), "a.b", "A", "a_b", "*"):
        assert not fits("tenant", bad)


@pytest.mark.parametrize(
    ("template", "text", "values"),
    [
        ("a.example", "a.example", {}),
        ("a.example", "b.example", None),
        ("{t}.example", "x.example", {"t": "x"}),
        ("{t}.example", "*.example", {"t": "*"}),
        ("{t}.example", "x.y.example", None),
        ("pre-{t}-post.example", "pre-x-post.example", {"t": "x"}),
        ("pre-{t}-post.example", "pre--post.example", None),
        ("pre-{t}-post.example", "pre-post.example", None),
        ("{region}.s3.{region}.example", "eu-west-1.s3.eu-west-1.example", {"region": "eu-west-1"}),
        ("{region}.s3.{region}.example", "eu-west-1.s3.eu-west-2.example", None),
        ("{region}.example", "us-west1.example", None),
        ("*.{t}.example", "a.b.x.example", {"t": "x"}),
        ("*.{t}.example", "a.x.example", {"t": "x"}),
        ("*.{t}.example", "x.example", None),
        ("*.data.example", "data.example", None),
    ],
)
def test_values_are_read_from_a_name(
    template: str, text: str, values: dict[str, str] | None
) -> None:
    assert capture(template, text) == values
    if values is not None and "*" not in template:
        assert fill(template, values) == text


def test_the_names_and_the_fixed_end_of_a_template() -> None:
    assert placeholders("{a}.b-{c}.example") == {"a", "c"}
    assert placeholders("a.example") == frozenset()
    assert fixed_suffix("{a}.b.{c}.x.example") == "x.example"
    assert fixed_suffix("*.data.example") == "data.example"
    assert fixed_suffix("a.example") == "a.example"
    assert fixed_suffix("a.{b}") == ""
