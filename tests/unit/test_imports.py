"""Imports go downward only, and the core stays pure.

Checked on the syntax tree: an import inside a function or under TYPE_CHECKING counts as well, and
nothing has to be importable.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "ramnet"

# Each layer, and what it may import besides itself.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "data": set(),
    "core": {"errors"},
    "host": {"core", "errors"},
    "daemon": {"surroundings", "witness", "host", "core", "errors"},
    "standby": {"host", "core", "errors"},
    "surroundings": {"host", "core", "errors"},
    "witness": {"host", "core", "errors"},
    "lab": {"daemon", "host", "core", "errors"},
    "cli": {"lab", "daemon", "standby", "host", "core", "errors"},
    "__main__": {"cli"},
    "__init__": set(),
}
PURE = {"core", "errors"}

# What would give the core a clock, a network, another program or a thread.
IMPURE_MODULES = {
    "asyncio",
    "concurrent",
    "ctypes",
    "fcntl",
    "http",
    "multiprocessing",
    "nftables",
    "os",
    "pyroute2",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "urllib",
}
CLOCK_CALLS = {"now", "today", "utcnow"}


def layer_of(module: str) -> str:
    """``ramnet.core.dns`` is of the layer ``core``, the package itself of ``__init__``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Give the line and the dotted name of everything that is imported, by any means."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield node.lineno, alias.name
            case ast.ImportFrom(module=module, names=names, level=level):
                for alias in names:
                    yield node.lineno, f"{'.' * level}{module or ''}.{alias.name}"
            case ast.Call(
                func=ast.Name(id="__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def clock_calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Give the line and the name of every call like ``date.today()``."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=attr)):
                if owner in {"date", "datetime"} and attr in CLOCK_CALLS:
                    yield node.lineno, f"{owner}.{attr}"


def fault_of(layer: str, name: str) -> str:
    """Say what is wrong with the import of ``name`` in a layer; empty when nothing is."""
    top = name.split(".", maxsplit=1)[0]
    if not top:
        return "relative import"
    if top == "ramnet":
        target = layer_of(name)
        # The version is a constant of the package itself, which imports nothing.
        if target not in MAY_IMPORT[layer] | {layer, "__version__"}:
            return f"{layer} must not import {target}"
    elif layer in PURE and top in IMPURE_MODULES:
        return f"{layer} must not import {top}"
    return ""


def faults(module: str, source: str) -> list[str]:
    """List what a module (its dotted name) does against the rules."""
    layer = layer_of(module)
    tree = ast.parse(source)
    found = [(line, fault_of(layer, name)) for line, name in imports(tree)]
    if layer in PURE:
        found += [(line, f"{layer} must not call {call}()") for line, call in clock_calls(tree)]
    return [f"{module}:{line}: {fault}" for line, fault in found if fault]


def modules() -> dict[str, Path]:
    """Give every module of the package by its dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        inner = len(parts) > 2 and parts[-1] == "__init__"
        found[".".join(parts[:-1] if inner else parts)] = path
    return found


def test_imports_go_downward_and_core_is_pure() -> None:
    found = modules()
    assert {"ramnet.errors", "ramnet.core", "ramnet.__main__"} <= found.keys()
    assert {layer_of(module) for module in found} <= MAY_IMPORT.keys(), "a layer without a rule"
    assert [f for name, path in found.items() for f in faults(name, path.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("ramnet.core.dns", "import socket", "core must not import socket"),
        ("ramnet.core.dns", "import os.path as p", "core must not import os"),
        ("ramnet.core.dns", "from time import monotonic", "core must not import time"),
        ("ramnet.core.dns", "def f():\n    import subprocess", "core must not import subprocess"),
        ("ramnet.core.dns", "importlib.import_module('ctypes')", "core must not import ctypes"),
        ("ramnet.core.dns", "__import__('asyncio')", "core must not import asyncio"),
        ("ramnet.core.dns", "if TYPE_CHECKING:\n    import pyroute2.x", "must not import pyroute2"),
        ("ramnet.core.dns", "import nftables, re", "core must not import nftables"),
        ("ramnet.core.dns", "import threading", "core must not import threading"),
        ("ramnet.core.policy", "x = date.today()", "core must not call date.today()"),
        ("ramnet.core.dns", "from ramnet.host import nft", "core must not import host"),
        ("ramnet.core.dns", "from ramnet import daemon", "core must not import daemon"),
        ("ramnet.core.dns", "from . import names", "relative import"),
        ("ramnet.errors", "import ramnet.core.names", "errors must not import core"),
        ("ramnet.host.nft", "from ramnet.lab import world", "host must not import lab"),
        ("ramnet.host.nft", "import ramnet.daemon", "host must not import daemon"),
        ("ramnet.daemon", "from ramnet.cli.main import main", "daemon must not import cli"),
        ("ramnet.daemon", "from ramnet.lab import world", "daemon must not import lab"),
        ("ramnet.lab.world", "from ramnet.cli import main", "lab must not import cli"),
        ("ramnet.__init__", "from ramnet.core import names", "__init__ must not import core"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str, fault: str) -> None:
    (found,) = faults(module, source)
    assert found.endswith(fault)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ramnet.core.dns", "import struct, re, ipaddress\nfrom ramnet.errors import WireError"),
        ("ramnet.core.policy", "from datetime import date\ndef f(today: date): ..."),
        ("ramnet.core.dns", "timeout = lease.time  # an attribute, not the module"),
        ("ramnet.host.nft", "import os, socket\nfrom ramnet.core import ruleset"),
        ("ramnet.cli.demo", "from ramnet.lab import world\nfrom ramnet import __version__"),
        ("ramnet.lab.world", "from ramnet import daemon, host, core, errors"),
        ("ramnet.__main__", "from ramnet.cli.main import main"),
    ],
)
def test_what_the_rules_allow(module: str, source: str) -> None:
    assert faults(module, source) == []
