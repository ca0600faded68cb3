"""The filter as a program; tests/netns/test_notice_responder.py has it in force."""

from __future__ import annotations

import struct

import pytest

from ramnet.host.confine import seccomp_program

ALLOWED, REFUSED = 0x7FFF_0000, 0x0005_0001
X86, ARM = 0xC000_003E, 0xC000_00B7
MACHINES = {"x86_64": X86, "aarch64": ARM}


def judge(machine: str, number: int, *arguments: int, arch: int | None = None) -> int:
    """Run the filter as the kernel does."""
    program = seccomp_program(machine)
    assert program is not None
    audit = MACHINES[machine] if arch is None else arch
    padded = (*arguments, *([0] * (6 - len(arguments))))
    data = struct.pack("=iIQ6Q", number, audit, 0, *padded)
    steps = list(struct.iter_unpack("=HBBI", program))
    at = value = 0
    while True:
        code, true, false, operand = steps[at]
        at += 1
        if code == 0x20:
            value = struct.unpack_from("=I", data, operand)[0]
        elif code == 0x54:
            value &= operand
        elif code == 0x15:
            at += true if value == operand else false
        else:
            return int(operand)


@pytest.mark.parametrize(
    ("machine", "read", "socket", "connect", "execve", "openat", "shutdown"),
    [("x86_64", 0, 41, 42, 59, 257, 48), ("aarch64", 63, 198, 203, 221, 56, 210)],
)
def test_what_passes(
    machine: str, read: int, socket: int, connect: int, execve: int, openat: int, shutdown: int
) -> None:
    assert judge(machine, read) == ALLOWED
    for number in (socket, connect, execve, 435, 425, 1000, -1):
        assert judge(machine, number) == REFUSED
    assert judge(machine, openat, 0, 0, 0o2000000) == ALLOWED  # O_CLOEXEC
    for flags in (0o1, 0o2, 0o102, 0o1000, 0o20200000):
        assert judge(machine, openat, 0, 0, flags) == REFUSED
    sendto = {"x86_64": 44, "aarch64": 206}[machine]
    assert judge(machine, sendto, 5, 0x1000, 1, 0, 0, 0) == ALLOWED
    assert judge(machine, sendto, 5, 0x1000, 1, 0, 0x2000, 16) == REFUSED
    assert judge(machine, shutdown, 5, 1) == ALLOWED
    assert judge(machine, shutdown, 5, 2) == REFUSED


def test_calls_of_another_architecture_do_not_pass() -> None:
    assert judge("x86_64", 0, arch=0x4000_0003) == REFUSED  # int 0x80
    assert judge("x86_64", 0x4000_0000) == REFUSED  # x32


def test_a_machine_that_is_not_known_has_none() -> None:
    assert seccomp_program("riscv64") is None
