"""The marking program, run by a small BPF machine that knows only what the program may use."""

from __future__ import annotations

import struct
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ramnet.core.marker import NAME_BYTES, mark_of, marker_program, program_name

SOCK_BYTES = 80  # struct bpf_sock
MPTCP = 262  # IPPROTO_MPTCP
FULL = (1 << 64) - 1
ADDRESS = 0x7F00_0000_1000  # where the machine has the socket


def run(program: bytes, sock: bytearray) -> int:
    """Run a program over a socket and return what is in register 0 when it exits."""
    registers: dict[int, int] = {1: ADDRESS}
    assert len(program) % 8 == 0
    at = -8
    while at < len(program) - 8:
        at += 8
        code, packed, offset, constant = struct.unpack_from("=BBhi", program, at)
        low, high = packed & 15, packed >> 4
        target, source = (low, high) if sys.byteorder == "little" else (high, low)
        match code:
            case 0x61:  # target = *(u32 *)(source + offset)
                place = registers[source] + offset - ADDRESS
                (registers[target],) = struct.unpack_from("=I", sock, place)
            case 0x63:  # *(u32 *)(target + offset) = source
                place = registers[target] + offset - ADDRESS
                struct.pack_into("=I", sock, place, registers[source] & 0xFFFF_FFFF)
            case 0x4F:
                registers[target] = (registers[target] | registers[source]) & FULL
            case 0xB4:  # 32 bits wide: the upper half becomes zero
                registers[target] = constant & 0xFFFF_FFFF
            case 0x55:  # skip so many unless target == constant
                assert offset >= 0, "only forward: no loops"
                at += 8 * offset if registers[target] != constant else 0
            case 0x95:
                return registers[0]
            case _:
                pytest.fail(f"instruction {code:#x} is not known")
    pytest.fail("the program does not exit")


@given(st.integers(1, (1 << 32) - 1), st.binary(min_size=SOCK_BYTES, max_size=SOCK_BYTES))
def test_the_bits_are_added_and_nothing_else_changes(mark: int, before: bytes) -> None:
    assume(struct.unpack_from("=I", before, 12) != (MPTCP,))
    sock = bytearray(before)
    assert run(marker_program(mark), sock) == 1, "the socket may be made"
    (old,) = struct.unpack_from("=I", before, 16)
    assert struct.unpack_from("=I", sock, 16) == (old | mark,)
    assert sock[:16] == before[:16]
    assert sock[20:] == before[20:]


@given(st.integers(1, (1 << 32) - 1))
def test_a_multipath_socket_is_not_made(mark: int) -> None:
    """The kernel makes its subflows itself, and does not mark them."""
    sock = bytearray(SOCK_BYTES)
    struct.pack_into("=I", sock, 12, MPTCP)
    before = bytes(sock)
    assert run(marker_program(mark), sock) == 0, "EPERM"
    assert sock == before


@given(st.integers(1, (1 << 32) - 1))
def test_the_name_tells_the_mark(mark: int) -> None:
    name = program_name(mark)
    assert len(name) <= NAME_BYTES
    assert all(char.isascii() and (char.isalnum() or char in "_.") for char in name)
    assert mark_of(name) == mark


@pytest.mark.parametrize(
    "name",
    [
        "",
        "sd_devices",
        "ramnet_",
        "ramnet_0200000",
        "ramnet_0200000G",
        "ramnet_02000000x",
        "ramnet_02000000\n",
        "xramnet_02000000",
        "RAMNET_02000000",
    ],
)
def test_what_is_not_ours(name: str) -> None:
    assert mark_of(name) is None
