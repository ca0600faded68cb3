"""Takes every right from this process that answering a connection does not need.

``drop_user`` for a process that root started: a user of its own, of which nobody else has
processes or files. ``confine`` for any: no new privileges, and a seccomp filter with a list of what
is allowed. Left are reading, answering and accepting on what is open, memory that cannot be
executed, and reading files. There is no other socket, no program, no process, no file to write.
"""

from __future__ import annotations

import ctypes
import os
import platform
import pwd
import resource
import struct
from pathlib import Path
from typing import Final

from ramnet.errors import HostError

# Of those that systemd gives to services for as long as they run (DynamicUser=), from the end.
_USERS: Final = range(65_519, 61_183, -1)

_PR_SET_DUMPABLE: Final = 4
_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_MODE_FILTER: Final = 2

# linux/audit.h, linux/seccomp.h, linux/filter.h
_ARCHITECTURES: Final = {"x86_64": (0, 0xC000_003E), "aarch64": (1, 0xC000_00B7)}
_ALLOW: Final = 0x7FFF_0000
_DENY: Final = 0x0005_0001  # with EPERM
_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

# By their numbers on x86_64 and aarch64; None where the architecture has no such call.
_CALLS: Final[dict[str, tuple[int | None, int | None]]] = {
    # what is open
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "pread64": (17, 67),
    "writev": (20, 66),
    "fcntl": (72, 25),
    "getdents64": (217, 61),
    "newfstatat": (262, 79),
    "readlinkat": (267, 78),
    "memfd_create": (319, 279),
    # connections
    "accept": (43, 202),
    "accept4": (288, 242),
    "recvfrom": (45, 207),
    "getsockname": (51, 204),
    "getpeername": (52, 205),
    "setsockopt": (54, 208),
    "getsockopt": (55, 209),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "epoll_ctl": (233, 21),
    # memory and time
    "munmap": (11, 215),
    "brk": (12, 214),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "gettimeofday": (96, 169),
    "clock_gettime": (228, 113),
    "getrandom": (318, 278),
    # of itself
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "restart_syscall": (219, 128),
    "getpid": (39, 172),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "gettid": (186, 178),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
# The same, and which argument, under which mask, has to have which value.
_CALLS_WITH: Final[dict[str, tuple[tuple[int, int], tuple[int, int, int]]]] = {
    # To whom it is connected, at an address of no octets; a datagram could go to any other socket.
    "sendto": ((44, 206), (5, 0xFFFF_FFFF, 0)),
    # Reading only: no O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND, nor an unnamed file.
    "openat": ((257, 56), (2, 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000 | 0o20000000, 0)),
    "mmap": ((9, 222), (2, 4, 0)),  # no PROT_EXEC
    "mprotect": ((10, 226), (2, 4, 0)),
    "ioctl": ((16, 29), (1, 0xFFFF_FFFF, 0x5421)),  # FIONBIO
    # SHUT_WR, which a listening socket does not mind. By the others it would let go of its port.
    "shutdown": ((48, 210), (1, 0xFFFF_FFFF, 1)),
}


def seccomp_program(machine: str) -> bytes | None:
    """Make the filter for a machine as ``uname -m`` names it; None for one that is not known."""
    known = _ARCHITECTURES.get(machine)
    if known is None:
        return None
    column, audit = known
    program = [
        _step(_LOAD, _ARCH),
        _step(_EQUAL, audit, 1, 0),
        _step(_RETURN, _DENY),
        _step(_LOAD, _NUMBER),
    ]
    for numbers in _CALLS.values():
        number = numbers[column]
        if number is not None:
            program += [_step(_EQUAL, number, 0, 1), _step(_RETURN, _ALLOW)]
    for only, (argument, mask, value) in _CALLS_WITH.values():
        program += [
            _step(_EQUAL, only[column], 0, 5),
            _step(_LOAD, _ARGUMENTS + 8 * argument),  # the lower half: both are little-endian
            _step(_AND, mask),
            _step(_EQUAL, value, 0, 1),
            _step(_RETURN, _ALLOW),
            _step(_RETURN, _DENY),
        ]
    program.append(_step(_RETURN, _DENY))
    return b"".join(program)


def _step(code: int, operand: int, true: int = 0, false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, true, false, operand)


def drop_user() -> None:
    """Become a user without rights that nobody else is. Raises ``HostError``."""
    user = _unused_user()
    try:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    except OSError as err:
        raise HostError(f"cannot become user {user}: {err.strerror}") from err
    # As octets: this user may not be able to read the modules that decode them.
    status = Path("/proc/self/status").read_bytes()
    if any(line.startswith(b"CapEff:") and int(line[7:], 16) for line in status.splitlines()):
        raise HostError("capabilities are left without root")
    # Else what this process has open below /proc/self is root's, and it is read from there.
    _prctl(_PR_SET_DUMPABLE, 1)


def _unused_user() -> int:
    owners = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                owners.add(entry.stat().st_uid)
            except OSError:  # it has ended
                continue
    taken = owners | {entry.pw_uid for entry in pwd.getpwall()}
    return next(user for user in _USERS if user not in taken)


def confine(descriptors: int) -> str | None:
    """Allow this process what the list has, and so many descriptors.

    Returns why there is no filter, where the kernel or this program has none. Raises ``HostError``.
    """
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    except (OSError, ValueError) as err:
        raise HostError(f"cannot have {descriptors} descriptors: {err}") from err
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    program = seccomp_program(platform.machine())
    if program is None:
        return f"no list of system calls for {platform.machine()}"
    steps = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog
    whole = struct.pack("@HP", len(program) // 8, ctypes.addressof(steps))
    try:
        _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, whole)
    except HostError as err:
        return err.message
    return None


def _prctl(option: int, first: int, second: bytes | int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    given = ctypes.c_char_p(second) if isinstance(second, bytes) else ctypes.c_ulong(second)
    zero = ctypes.c_ulong(0)
    if libc.prctl(option, ctypes.c_ulong(first), given, zero, zero):
        raise HostError(f"prctl({option}): {os.strerror(ctypes.get_errno())}")
