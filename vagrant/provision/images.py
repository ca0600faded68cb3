"""Puts images into a registry's storage: images.py STORAGE ORIGIN REPOSITORY..."""
# ruff: noqa: INP001 - a script, in no package

from __future__ import annotations

import sys
from pathlib import Path

from ramnet.lab import image


def main(storage: str, origin: str, *repositories: str) -> None:
    """Store an image with busybox and a file /origin under each repository, tag latest."""
    made = image.image([image.busybox(), image.layer({"origin": f"{origin}\n".encode()})])
    for repository in repositories:
        image.store(Path(storage), repository, "latest", made)


if __name__ == "__main__":
    main(*sys.argv[1:])
