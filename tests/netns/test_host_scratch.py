"""The scratch namespace: everything happens there, and nothing is left."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from pathlib import Path

import pytest

from ramnet.errors import HostError
from ramnet.host.nft import Nft
from ramnet.host.scratch import in_scratch_netns

OWN = Path("/proc/thread-self/ns/net")


def test_the_work_is_done_in_another_namespace_and_its_result_is_given_back() -> None:
    before = OWN.readlink()
    inside = in_scratch_netns(OWN.readlink)
    assert inside != before
    assert OWN.readlink() == before


def test_the_namespace_is_empty_and_goes_away() -> None:
    def work() -> tuple[tuple[tuple[str, str], ...], list[str]]:
        nft = Nft()
        assert nft.tables() == ()
        nft.apply("table inet mine\n")
        return nft.tables(), sorted(os.listdir("/sys/class/net") and ["lo"])  # noqa: PTH208

    assert in_scratch_netns(work)[0] == (("inet", "mine"),)
    assert in_scratch_netns(lambda: Nft().tables()) == ()
    assert ("inet", "mine") not in Nft().tables()
    assert threading.active_count() == 1 or "scratch-netns" not in {
        thread.name for thread in threading.enumerate()
    }


@pytest.mark.parametrize("error", [ValueError("x"), HostError("y"), KeyboardInterrupt()])
def test_what_the_work_raises_is_raised_here(error: BaseException) -> None:
    def work() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        in_scratch_netns(work)
    assert caught.value is error


def test_without_namespaces_the_reason_and_a_hint_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Refusing:
        def unshare(self, _flags: int) -> int:
            ctypes.set_errno(errno.EPERM)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_a, **_k: Refusing())
    with pytest.raises(HostError, match=r"unshare\(CLONE_NEWNET\): Operation not permitted") as got:
        in_scratch_netns(lambda: pytest.fail("nothing may be done here"))
    assert "CONFIG_NET_NS" in got.value.hint
