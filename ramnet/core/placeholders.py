"""Names with ``{placeholders}``, as the catalogue writes them, and the regions of the clouds.

A placeholder stands for one label or a part of one. One that is named after a cloud's regions
takes only what looks like such a region: ``{region}`` of AWS, ``{location}`` of Google,
``{azure}`` of Azure. Any other takes whatever a label may hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# Longest text a placeholder may take: cloud regions have up to 23 characters, an account 12. With
# it, no host of an entry can outgrow a label of 63.
MAX_FILL: Final = 32
# What a placeholder takes if a policy allows every value of it: "*.dkr.ecr.eu-west-1...".
ANY: Final = "*"
_FILL_CHARS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")

# The form of each cloud's regions. New regions open all the time: a list would be out of date.
_FORMS: Final[Mapping[str, re.Pattern[str]]] = {
    # eu-west-1, us-gov-east-1, ap-southeast-2
    "region": re.compile(r"[a-z]{2}(-[a-z]+){1,2}-[0-9]{1,2}", re.ASCII),
    # us-west1, northamerica-northeast1, and the multi-regions
    "location": re.compile(r"[a-z]+-[a-z]+[0-9]{1,2}|us|europe|asia", re.ASCII),
    # westeurope, eastus2, eastus2euap
    "azure": re.compile(r"[a-z]{4,}([0-9][a-z]*)?", re.ASCII),
}
# What people call the values of each, for messages.
CLOUDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "region": "an AWS region such as eu-west-1",
        "location": "a Google location such as us-west1",
        "azure": "an Azure region such as westeurope",
    }
)


def is_region(text: str) -> bool:
    """Whether some cloud has regions that look like ``text``."""
    return any(fits(kind, text) for kind in CLOUDS)


def fits(placeholder: str, value: str) -> bool:
    """Whether a placeholder may take ``value``, by its form."""
    if not (0 < len(value) <= MAX_FILL and _FILL_CHARS.issuperset(value)):
        return False
    form = _FORMS.get(placeholder)
    return form is None or form.fullmatch(value) is not None


def placeholders(text: str) -> frozenset[str]:
    """Return the names of the placeholders in ``text``."""
    return frozenset(part.partition("}")[0] for part in text.split("{")[1:])


def fill(text: str, values: Mapping[str, str]) -> str:
    """Return ``text`` with the placeholders replaced that ``values`` has."""
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def fixed_suffix(template: str) -> str:
    """Return the labels at the end of ``template`` that have neither a placeholder nor a star."""
    labels = template.split(".")
    start = max((n for n, label in enumerate(labels, 1) if "{" in label or label == ANY), default=0)
    return ".".join(labels[start:])


def capture(template: str, text: str) -> dict[str, str] | None:
    """Return the values of the placeholders that make ``template`` into ``text``, or None.

    ``*.`` in front of the template covers one or more labels.
    """
    parts, labels = template.split("."), text.split(".")
    if parts[0] == ANY and len(labels) >= len(parts):
        parts, labels = parts[1:], labels[len(labels) - len(parts) + 1 :]
    if len(parts) != len(labels):
        return None
    values: dict[str, str] = {}
    for part, label in zip(parts, labels, strict=True):
        head, brace, rest = part.partition("{")
        if not brace:
            if part != label:
                return None
            continue
        name, _, tail = rest.partition("}")
        if not (label.startswith(head) and label.endswith(tail)):
            return None
        value = label[len(head) : len(label) - len(tail)]
        if value != ANY and not fits(name, value):
            return None
        if values.setdefault(name, value) != value:
            return None
    return values
