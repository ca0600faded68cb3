"""What makes trees of Debian for tests."""

from __future__ import annotations

import sys

import pytest

from tests.debian import DebianError, run


def test_a_tree_does_not_get_what_is_set_for_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytecode of a tree was kept below the cache folder of bootstrap, inside the tree."""
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", "/var/cache/ramnet-bootstrap/pycache")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")  # it may take one to fetch
    said = run([sys.executable, "-c", "import os; print(sorted(os.environ))"])
    assert "PYTHON" not in said
    assert "HTTP_PROXY" in said


def test_what_fails_says_why() -> None:
    with pytest.raises(DebianError, match=r"status 3: because"):
        run(["/bin/sh", "-c", "echo because >&2; exit 3"])
    with pytest.raises(DebianError, match="nowhere"):
        run(["/nowhere"])
