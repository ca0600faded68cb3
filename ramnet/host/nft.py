"""Whole rulesets: one transaction in nft's own language, through the libnftables bindings.

libnftables speaks to the network namespace of the thread that made the handle.
"""

from __future__ import annotations

import json
from typing import Any

from ramnet.errors import HostError

# libnftables quotes the line at fault, and a line may hold a hundred thousand elements.
ERROR_CHARACTERS = 600


def _handle() -> Any:
    try:
        import nftables  # noqa: PLC0415 - the system library may be missing: say so, with a hint
    except (ImportError, OSError) as err:
        raise HostError(
            f"the nftables bindings cannot be loaded: {err}",
            hint="install libnftables1 (Debian, Ubuntu) and pip-nftables or python3-nftables",
        ) from err
    try:
        return nftables.Nftables()
    except OSError as err:
        raise HostError(
            f"libnftables cannot be loaded: {err}", hint="install libnftables1 (Debian, Ubuntu)"
        ) from err


class Nft:
    """One libnftables handle."""

    def __init__(self) -> None:
        """Open libnftables; raises ``HostError`` when it is not installed."""
        self._nft = _handle()

    def apply(self, text: str) -> None:
        """Run ``text`` as one transaction: all of it happens, or ``HostError`` and none of it."""
        self._nft.set_json_output(False)
        code, _, error = self._nft.cmd(text)
        if code != 0:
            raise HostError(f"nft: {_shorten(error)}")

    def list_table(self, family: str, name: str) -> str:
        """Return ``nft list table``'s text; raises ``HostError`` when there is none."""
        self._nft.set_json_output(False)
        code, output, error = self._nft.cmd(f"list table {family} {name}")
        if code != 0:
            raise HostError(f"nft: {_shorten(error)}")
        return str(output)

    def tables(self) -> tuple[tuple[str, str], ...]:
        """Return ``(family, name)`` of every table in the namespace."""
        self._nft.set_json_output(True)
        code, output, error = self._nft.cmd("list tables")
        if code != 0:
            raise HostError(f"nft: {_shorten(error)}")
        objects = json.loads(output)["nftables"] if output else []
        return tuple(
            (item["table"]["family"], item["table"]["name"]) for item in objects if "table" in item
        )


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= ERROR_CHARACTERS else line[:ERROR_CHARACTERS] + " ..."
