"""Marks the sockets of a cgroup as they are made, by a BPF program attached there (bpf(2)).

The attachment is the cgroup's: it outlives this process, holds for every group below and ends with
the group. Programs of others at the same group stay. libbpf would be a dependency for six calls;
the layouts are those of ``union bpf_attr`` and ``struct bpf_prog_info`` of ``linux/bpf.h``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ramnet.core.marker import mark_of, marker_program, program_name
from ramnet.errors import HostError

BPF_PROG_LOAD = 5
BPF_PROG_ATTACH = 8
BPF_PROG_DETACH = 9
BPF_PROG_GET_FD_BY_ID = 13
BPF_OBJ_GET_INFO_BY_FD = 15
BPF_PROG_QUERY = 16
_CALLS = {
    BPF_PROG_LOAD: "BPF_PROG_LOAD",
    BPF_PROG_ATTACH: "BPF_PROG_ATTACH",
    BPF_PROG_DETACH: "BPF_PROG_DETACH",
    BPF_PROG_GET_FD_BY_ID: "BPF_PROG_GET_FD_BY_ID",
    BPF_OBJ_GET_INFO_BY_FD: "BPF_OBJ_GET_INFO_BY_FD",
    BPF_PROG_QUERY: "BPF_PROG_QUERY",
}

BPF_PROG_TYPE_CGROUP_SOCK = 9
BPF_CGROUP_INET_SOCK_CREATE = 2
BPF_F_ALLOW_MULTI = 2
INSTRUCTION_BYTES = 8

# The kernel does not tell the number of a system call; asm/unistd.h of each machine does.
NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}

# The kernel takes a longer attr than it knows as long as the rest of it is zero.
_ATTR_BYTES = 128
_INFO = struct.Struct("=II8s")  # type, id, tag
_INFO_NAME = 64
_INFO_BYTES = 80
# BPF_CGROUP_MAX_PROGS: the kernel has no more of one kind at one group.
_MAX_PROGRAMS = 64

_PERMISSION_HINT = (
    "it needs root with CAP_BPF (or CAP_SYS_ADMIN) and CAP_NET_ADMIN, and no program without"
    " BPF_F_ALLOW_MULTI at this cgroup or above it (`bpftool cgroup tree` shows them)"
)
_HINTS = {
    errno.EPERM: _PERMISSION_HINT,
    errno.EACCES: _PERMISSION_HINT,
    errno.EINVAL: "the kernel needs CONFIG_CGROUP_BPF",
    errno.ENOSYS: "the kernel needs CONFIG_BPF_SYSCALL",
    errno.E2BIG: f"{_MAX_PROGRAMS} programs are attached to this cgroup, which is the most",
}


@dataclass(frozen=True, slots=True)
class Attached:
    """A program that sees the sockets of a cgroup; ``mark`` is None when it is not ours.

    ``tag`` is the kernel's digest of its instructions.
    """

    ident: int
    name: str
    tag: bytes
    mark: int | None


def mark_sockets(cgroup: Path, mark: int) -> bool:
    """Have every socket made in ``cgroup`` or below from now on carry the bits of ``mark``.

    ``cgroup`` is a directory of the v2 mount. Returns False when that is so already. Other marks of
    ours there are exchanged, the old one last: no socket is made without any. Raises ``HostError``.
    """
    with _opened(cgroup) as group, _loaded(marker_program(mark), program_name(mark)) as program:
        ours = [item for item in _attached(group) if item.mark is not None]
        tag = _describe(program).tag  # of the instructions, and the mark is in them
        kept = [item for item in ours if item.tag == tag][:1]
        if not kept:
            _attach(group, program)
        for item in ours:
            if item not in kept:
                _detach(group, item)
    return not kept


def unmark_sockets(cgroup: Path) -> int:
    """Take our programs from ``cgroup`` and return how many there were; others stay.

    Sockets keep the mark that they were made with. Raises ``HostError``.
    """
    with _opened(cgroup) as group:
        ours = [item for item in _attached(group) if item.mark is not None]
        for item in ours:
            _detach(group, item)
    return len(ours)


def marks(cgroup: Path) -> tuple[Attached, ...]:
    """Return every program that is attached to ``cgroup`` itself, in the order they run."""
    with _opened(cgroup) as group:
        return tuple(_attached(group))


@contextlib.contextmanager
def _opened(cgroup: Path) -> Iterator[int]:
    try:
        descriptor = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        raise HostError(
            f"the cgroup {cgroup} cannot be opened: {err.strerror}",
            hint="is it still there? ramnet makes the cgroups of its configuration when it starts",
        ) from err
    try:
        yield descriptor
    except FileNotFoundError as err:
        raise HostError(
            f"the cgroup {cgroup} went away while it was looked at",
            hint="it is made anew, and looked at again, within a second",
        ) from err
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _loaded(code: bytes, name: str) -> Iterator[int]:
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack(
        "=IIQQ24x16sII",
        BPF_PROG_TYPE_CGROUP_SOCK,
        len(code) // INSTRUCTION_BYTES,
        ctypes.addressof(instructions),
        ctypes.addressof(licence),
        name.encode(),
        0,  # no network device
        BPF_CGROUP_INET_SOCK_CREATE,
    )
    descriptor, _ = _bpf(BPF_PROG_LOAD, attr)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _attached(group: int) -> Iterator[Attached]:
    idents = ctypes.create_string_buffer(4 * _MAX_PROGRAMS)
    query = struct.pack(
        "=IIIIQI",
        group,
        BPF_CGROUP_INET_SOCK_CREATE,
        0,  # what is attached here, not what comes down from above
        0,
        ctypes.addressof(idents),
        _MAX_PROGRAMS,
    )
    _, answer = _bpf(BPF_PROG_QUERY, query)
    (count,) = struct.unpack_from("=I", answer, 24)
    for ident in struct.unpack_from(f"={count}I", idents):
        with contextlib.suppress(FileNotFoundError), _by_ident(ident) as program:
            yield _describe(program)


@contextlib.contextmanager
def _by_ident(ident: int) -> Iterator[int]:
    """Open a program. ``FileNotFoundError`` when it is gone, ``HostError`` for anything else."""
    descriptor, _ = _bpf(BPF_PROG_GET_FD_BY_ID, struct.pack("=I", ident))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _describe(program: int) -> Attached:
    info = ctypes.create_string_buffer(_INFO_BYTES)
    _bpf(BPF_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", program, len(info), ctypes.addressof(info)))
    _kind, ident, tag = _INFO.unpack_from(info)
    name = info.raw[_INFO_NAME:].partition(b"\0")[0].decode("ascii", "replace")
    return Attached(ident, name, tag, mark_of(name))


def _attach(group: int, program: int, flags: int = BPF_F_ALLOW_MULTI) -> None:
    attr = struct.pack("=IIII", group, program, BPF_CGROUP_INET_SOCK_CREATE, flags)
    _bpf(BPF_PROG_ATTACH, attr)


def _detach(group: int, item: Attached) -> None:
    with contextlib.suppress(FileNotFoundError), _by_ident(item.ident) as program:
        _bpf(BPF_PROG_DETACH, struct.pack("=III", group, program, BPF_CGROUP_INET_SOCK_CREATE))


def _bpf(command: int, attr: bytes) -> tuple[int, bytes]:
    """Call bpf(2): what it returns, and the attr as the kernel left it.

    Raises ``FileNotFoundError`` for ENOENT, ``HostError`` for any other error.
    """
    number = NUMBERS.get(os.uname().machine)
    if number is None:
        raise HostError(
            f"the number of bpf(2) on {os.uname().machine} is not known",
            hint='use another [scope] mode than "mark"',
        )
    size = _ATTR_BYTES
    buffer = ctypes.create_string_buffer(attr, size)
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(number, command, buffer, size))
    if result < 0:
        code = ctypes.get_errno()
        if code == errno.ENOENT:
            raise FileNotFoundError(code, os.strerror(code))
        raise HostError(f"bpf({_CALLS[command]}): {os.strerror(code)}", hint=_HINTS.get(code, ""))
    return result, buffer.raw
