"""docs/policy.md has every key and every warning, and its examples are real."""

from __future__ import annotations

import re
from dataclasses import fields
from datetime import date
from pathlib import Path

import pytest

from ramnet import __version__
from ramnet.core.catalog import load_catalog
from ramnet.core.caution import Kind
from ramnet.core.cautions import cautions
from ramnet.core.policy import (
    DestinationEntry,
    Enforcement,
    OnDenyEach,
    Policy,
    RegistryEntry,
    Support,
    parse_policy,
)
from ramnet.core.suffixes import load_suffixes

TEXT = (Path(__file__).resolve().parents[2] / "docs/policy.md").read_text("utf-8")
EXAMPLE = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)[0]


def keys(title: str) -> set[str]:
    """The keys that the table below a heading has."""
    body = TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    first = re.findall(r"^\| (`[^|]*) \|", body.partition("\n\nForms")[0], re.MULTILINE)
    return {word for cell in first for word in re.findall(r"`([^`]*)`", cell)}


@pytest.mark.parametrize(
    ("title", "wanted"),
    [
        ("At the top", set(Policy.model_fields)),
        ("`[support]`", set(Support.model_fields)),
        ("`[[registry]]`", {field.name for field in fields(RegistryEntry)}),
        ("`[[destination]]`", {field.name for field in fields(DestinationEntry)}),
        ("`[enforcement]`", set(Enforcement.model_fields)),
        ("Warnings", {str(kind) for kind in Kind}),
    ],
)
def test_a_table_has_every_key_and_no_other(title: str, wanted: set[str]) -> None:
    assert keys(title) == wanted


def test_the_example_is_a_valid_policy_with_every_key() -> None:
    read = parse_policy(EXAMPLE, source="policy.toml", ramnet_version=__version__)
    said = set(re.findall(r"\b(\w+) = ", EXAMPLE))
    entries = (RegistryEntry, DestinationEntry, OnDenyEach)
    wanted = {field.name for entry in entries for field in fields(entry)}
    wanted |= {*Support.model_fields, *Enforcement.model_fields, "version", "organization"}
    assert said == wanted
    assert cautions(read, load_catalog(), load_suffixes(), date(2026, 12, 1)) == ()


@pytest.mark.parametrize(
    "line", re.findall(r"^\| `([a-z-]+)` \| (.*) \| .* \|$", TEXT, re.MULTILINE)
)
def test_the_examples_of_a_warning_are_warned_of(line: tuple[str, str]) -> None:
    kind, what = line
    for address in re.findall(r"`((?:\*\.)?[a-z0-9.-]+\.[a-z]+(?::\d+)?)`:?", what):
        if kind == "docker-hub-missing" or (kind, address) == ("partial-registry", "quay.io"):
            continue
        text = f'version = 1\norganization = "acme"\n[[registry]]\naddress = "{address}"\n'
        read = parse_policy(text, source="policy.toml", ramnet_version=__version__)
        found = cautions(read, load_catalog(), load_suffixes(), date(2026, 12, 1))
        assert kind in {str(item.kind) for item in found}, address
