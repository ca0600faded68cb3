"""The names of the lab's world, and what its DNS says about them.

Every registry name resolves into the far side's prefixes, where every address serves the same
images: what is reachable is decided by nothing but ramnet.
"""

from __future__ import annotations

from ramnet.lab.dns import Record, records

HUB = ("198.51.100.10", "198.51.100.11", "198.51.100.12", "2001:db8::10")
GHCR = ("198.51.100.20",)
QUAY = ("198.51.100.30", "198.51.100.31", "2001:db8::30")
CORP = ("203.0.113.40",)
V6ONLY = ("2001:db8::50",)
DUAL = ("198.51.100.60", "2001:db8::60")
EVIL = ("198.51.100.66", "2001:db8::66")
CHAIN = ("198.51.100.70", "2001:db8::70")

# Named as the registries name theirs where the lab stands for a public one.
RECORDS = records(
    {
        "docker.io": HUB[:1],
        "registry-1.docker.io": HUB,
        "index.docker.io": "registry-1.docker.io",
        "auth.docker.io": ["198.51.100.13"],
        "production.cloudflare.docker.com": ["198.51.100.14"],
        "ghcr.io": GHCR,
        "pkg-containers.githubusercontent.com": ["198.51.100.21"],
        "quay.io": "quay.edge.example",
        "quay.edge.example": "quay.pool.example",
        "quay.pool.example": QUAY,
        "cdn.quay.io": ["198.51.100.32"],
        "registry.corp.example": CORP,
        "v6only.example": V6ONLY,
        "dual.example": DUAL,
        "evil.example": EVIL,
        "chain.example": "one.chain.example",
        "one.chain.example": "two.chain.example",
        "two.chain.example": "three.chain.example",
        "three.chain.example": CHAIN,
    }
)

# What the untrusted server says: the names of good registries lead to the bad one.
LIES = {
    name: Record(addresses=EVIL)
    for name in ("registry-1.docker.io", "ghcr.io", "quay.io", "registry.corp.example")
}

# Names that a certificate covers beyond those of the records, for records that tests add.
WILDCARDS = ("*.example", "*.corp.example", "*.docker.io", "localhost")

IMAGES = ("library/busybox", "acme/app")


def certificate_names() -> set[str]:
    """Return every name and address that the registries' certificate is valid for."""
    names = {*RECORDS, *WILDCARDS, "127.0.0.1", "::1"}
    for record in RECORDS.values():
        names.update(record.addresses)
    return names
