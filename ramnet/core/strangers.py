"""Names in a policy that admit strangers: too wide, or with a label that a tenant chooses."""

from __future__ import annotations

from typing import Final

from ramnet.core.catalog import Catalog
from ramnet.core.caution import Caution, Kind, caution
from ramnet.core.names import HostName, HostPattern
from ramnet.core.placeholders import CLOUDS, capture
from ramnet.core.suffixes import Suffixes
from ramnet.core.textfile import KeyPath

# One name for the buckets of everybody, who differ only by the path behind it.
_BY_PATH: Final = frozenset({"storage.googleapis.com"})
# Placeholders of the catalogue whose values are no customer's to choose.
_OPERATORS_CHOICE: Final = frozenset({*CLOUDS, "area"})
_S3: Final = (".amazonaws.com", ".amazonaws.com.cn")


def strangers(
    path: KeyPath, pattern: HostPattern, catalog: Catalog, suffixes: Suffixes
) -> Caution | None:
    """Say whom else a pattern lets in; None where all of it may well be one owner's."""
    name = pattern.name
    if not pattern.wildcard:
        if not _serves_by_path(name):
            return None
        what = f"{name} serves the buckets of everybody, by their path"
        return caution(Kind.TENANT, path, what, f"list the host of the one bucket: BUCKET.{name}")
    hint = "list the hosts that you mean, each by its name"
    title = _every_customers(pattern, catalog)
    if title:
        kind, what = Kind.TENANT, f"{pattern} is {title} of every customer, not only yours"
    elif suffixes.is_registry_suffix(name):
        kind, what = Kind.WIDE, f"anybody can register a name below {name}"
    elif suffixes.is_private_suffix(name):
        kind, what = Kind.TENANT, f"any customer there can choose the label in front of {name}"
    elif below := suffixes.below(name):
        kind, what = Kind.WIDE, f"{pattern} covers {below}, below which anybody can have a name"
    else:
        return None
    return caution(kind, path, what, hint)


def _every_customers(pattern: HostPattern, catalog: Catalog) -> str:
    """Return the title of the registry of which a wildcard is every customer's, or nothing."""
    for template in catalog.templates:
        for address in (template.key, *template.aliases):
            label = address.partition(".")[0]
            chosen = label[1:-1] if label.startswith("{") and label.endswith("}") else ""
            if not chosen or chosen in _OPERATORS_CHOICE:
                continue
            if capture(address, str(pattern)) is not None:
                return template.title
    return ""


def _serves_by_path(name: HostName) -> bool:
    first = name.partition(".")[0]
    s3 = (first == "s3" or first.startswith("s3-")) and name.endswith(_S3)
    return s3 or name in _BY_PATH
