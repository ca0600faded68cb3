"""What tells the container engine's own traffic from that of the rest of the host."""

from __future__ import annotations

from dataclasses import dataclass

from ramnet.core.config import ScopeMode, Weak
from ramnet.core.policy import ClassMode, Policy

# Where the live probe sends its datagram, on 127.0.0.1: the rules of the engine class count it and
# drop it. Nobody has to listen there.
PROBE_PORT = 7261
# The named counter that the datagram moves.
PROBED = "probed"


@dataclass(frozen=True, slots=True)
class Group:
    """One cgroup of the v2 hierarchy that holds a container engine.

    ``path`` is below the mount, without a leading slash; ``level`` is its depth (1 is right below
    the root); ``ident`` is its id, which is its inode number on 64-bit kernels and what the kernel
    compares; ``place`` is the path as nft reads it, relative to ``/sys/fs/cgroup``.
    """

    path: str
    level: int
    ident: int
    place: str


@dataclass(frozen=True, slots=True)
class Scope:
    """By what engines are told apart, as the rules need it.

    ``groups`` for mode cgroup (and, for mode mark, those whose sockets are marked); ``mark`` is the
    bit of the packet mark of mode mark; ``uids`` are the users of mode uid. ``weak`` says how
    engines are judged where the mode singles out more than engines; ``host`` how everyone else is.
    """

    mode: ScopeMode
    groups: tuple[Group, ...] = ()
    mark: int = 0
    uids: tuple[int, ...] = ()
    weak: Weak = Weak.CATALOG
    host: ClassMode = ClassMode.OFF

    @property
    def precise(self) -> bool:
        """Whether engines, and nobody else, are meant."""
        return self.mode.precise

    @property
    def levels(self) -> tuple[int, ...]:
        """The depths at which groups have to be looked for."""
        return tuple(sorted({group.level for group in self.groups}))


@dataclass(frozen=True, slots=True)
class Classes:
    """How each traffic class is really judged."""

    engine: ClassMode
    containers: ClassMode
    host: ClassMode

    @property
    def catalog(self) -> bool:
        """Whether any class is judged by the catalogue."""
        return ClassMode.CATALOG in (self.engine, self.containers, self.host)

    @property
    def hears(self) -> bool:
        """Whether it has to be known what others than engines may reach.

        Strict containers may reach nothing else, and the catalogue exempts it.
        """
        return self.catalog or self.containers is ClassMode.STRICT


def classes_for(policy: Policy | None, scope: Scope, *, blind: bool = False) -> Classes:
    """Decide how each class is judged: what the policy wants, as far as the scope can tell it.

    Without a policy the engine class is locked, and the others, of which nothing is known, are
    left alone. ``blind``: the live probe says that engines are not told apart, so that any other
    program's connection may be an engine's; what ``weak`` says is then for all of them.
    """
    asked = policy.enforcement.engine if policy is not None else ClassMode.STRICT
    engine, host = asked, scope.host
    if asked is ClassMode.STRICT and not scope.precise and scope.weak is Weak.CATALOG:
        engine = ClassMode.CATALOG if policy is not None else ClassMode.OFF
    if scope.mode is ScopeMode.NETNS:
        host = engine
    elif blind and asked is not ClassMode.OFF:
        # Left alone stays who is (on WSL2 they are other distros), unless strictness was asked for.
        if asked is ClassMode.STRICT and scope.weak is not Weak.CATALOG:
            host = ClassMode.STRICT
    elif policy is None:
        host = ClassMode.OFF
    containers = policy.enforcement.containers if policy is not None else ClassMode.OFF
    return Classes(engine, containers, host)


def engines_set(level: int) -> str:
    """Name the set that holds the ids of the engines' cgroups of one level."""
    return f"engines{level}"
