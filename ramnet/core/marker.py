"""The BPF program that marks an engine's sockets as they are made: its bytes and its name.

For the hook ``cgroup/sock_create``. Written by hand: ten instructions, no compiler. Source:
``struct bpf_insn`` and ``struct bpf_sock`` of ``linux/bpf.h``.
"""

from __future__ import annotations

import re
import struct
import sys

# The kernel keeps 15 characters of a program's name: letters, digits, "_" and ".".
NAME_BYTES = 15
PROGRAM = "ramnet_"
_NAME = re.compile(rf"{PROGRAM}([0-9a-f]{{8}})")

_CONTEXT = 1  # the register that holds the argument of the program: a struct bpf_sock
_VALUE, _BIT, _RESULT = 2, 3, 0
_PROTOCOL_OFFSET = 12  # of ``protocol`` in struct bpf_sock
_MARK_OFFSET = 16  # of ``mark``
_MPTCP = 262  # IPPROTO_MPTCP of linux/in.h

_LOAD_WORD = 0x61  # BPF_LDX | BPF_MEM | BPF_W
_STORE_WORD = 0x63  # BPF_STX | BPF_MEM | BPF_W
_OR_REGISTER = 0x4F  # BPF_ALU64 | BPF_OR | BPF_X
_JUMP_UNLESS_EQUAL = 0x55  # BPF_JMP | BPF_JNE | BPF_K
_MOVE = 0xB4  # BPF_ALU | BPF_MOV | BPF_K: 32 bits, the upper half becomes 0
_EXIT = 0x95  # BPF_JMP | BPF_EXIT


def marker_program(mark: int) -> bytes:
    """Assemble ``if sk->protocol == MPTCP: return 0; sk->mark |= mark; return 1``.

    ``mark`` has 32 bits. Never a plain store: a mark that another program has set is kept. 1 lets
    the socket be made, 0 refuses it (EPERM): the kernel makes the subflows of an MPTCP socket
    itself, without a mark, and after a while of lost SYNs without the option that would tell them
    (net.mptcp.blackhole_timeout). Go dials by plain TCP then.
    """
    return b"".join(
        (
            _instruction(_LOAD_WORD, target=_VALUE, source=_CONTEXT, offset=_PROTOCOL_OFFSET),
            _instruction(_JUMP_UNLESS_EQUAL, target=_VALUE, offset=2, constant=_MPTCP),
            _instruction(_MOVE, target=_RESULT, constant=0),
            _instruction(_EXIT),
            _instruction(_LOAD_WORD, target=_VALUE, source=_CONTEXT, offset=_MARK_OFFSET),
            _instruction(_MOVE, target=_BIT, constant=mark),
            _instruction(_OR_REGISTER, target=_VALUE, source=_BIT),
            _instruction(_STORE_WORD, target=_CONTEXT, source=_VALUE, offset=_MARK_OFFSET),
            _instruction(_MOVE, target=_RESULT, constant=1),
            _instruction(_EXIT),
        )
    )


def program_name(mark: int) -> str:
    """Name the program that sets ``mark``: by the name ours are told from other people's."""
    return f"{PROGRAM}{mark:08x}"


def mark_of(name: str) -> int | None:
    """Return the mark that a program of this name sets; None when it is not one of ours."""
    match = _NAME.fullmatch(name)
    return int(match[1], 16) if match else None


def _instruction(
    code: int, *, target: int = 0, source: int = 0, offset: int = 0, constant: int = 0
) -> bytes:
    return struct.pack("=BBhI", code, _registers(target, source), offset, constant)


def _registers(target: int, source: int) -> int:
    """Pack two register numbers: bit fields, which a big-endian machine has the other way round."""
    return target << 4 | source if sys.byteorder == "big" else source << 4 | target
