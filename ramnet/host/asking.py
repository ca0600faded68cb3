"""Asks DNS, once, for many names: whether they exist, by which aliases, with which addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from ramnet.core.dns import TYPE_A, TYPE_AAAA, Answer
from ramnet.core.dnsremarks import Addr, Said, hosts_file
from ramnet.core.enginefacts import printable
from ramnet.core.names import HostName
from ramnet.errors import HostError
from ramnet.host import resolvconf
from ramnet.host.files import read_limited
from ramnet.host.resolver import NXDOMAIN, LookupFailed, Resolver

# A person waits for it; a resolver that answers at all needs less than a second for all of them.
SECONDS: Final = 10.0
CONCURRENCY: Final = 16
# Lists that block advertisements have some 3 MB.
MAX_HOSTS_FILE: Final = 8 * 1024 * 1024
LATE: Final = "no answer in time"


def ask_names(
    names: Iterable[HostName], *, root: Path = Path("/"), seconds: float = SECONDS
) -> dict[HostName, Said]:
    """Ask the servers of resolv.conf, and /etc/hosts, for every name; says all it knows in time.

    Not for use inside an event loop. Raises nothing.
    """
    wanted = tuple(dict.fromkeys(names))
    try:
        local = hosts_file(read_limited(str(root / "etc/hosts"), MAX_HOSTS_FILE), wanted)
    except HostError:
        local = {}
    servers = resolvconf.read(str(root / "etc/resolv.conf"))
    return asyncio.run(_all(wanted, local, servers, seconds)) if wanted else {}


async def _all(
    names: tuple[HostName, ...],
    local: dict[HostName, tuple[Addr, ...]],
    servers: tuple[resolvconf.Server, ...],
    seconds: float,
) -> dict[HostName, Said]:
    found = {name: Said(local=local.get(name, ()), error=LATE) for name in names}
    resolver = Resolver(lambda _event: None, concurrency=CONCURRENCY)
    resolver.set_servers(servers)
    slots = asyncio.Semaphore(CONCURRENCY)

    async def one(name: HostName) -> None:
        async with slots:
            found[name] = await _ask(resolver, name, local.get(name, ()))

    with suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(one(name))
    return found


async def _ask(resolver: Resolver, name: HostName, local: tuple[Addr, ...]) -> Said:
    answers: list[Answer] = []
    error = ""
    for qtype in (TYPE_A, TYPE_AAAA):
        try:
            answers.append(await resolver.lookup(name, qtype))
        except LookupFailed as err:
            error = printable(str(err))
    addresses = tuple(address for one in answers for address in one.addresses)
    if error and not addresses:  # the failed half may have had some
        return Said(local=local, error=error)
    chain = max((one.chain for one in answers), key=len, default=())
    exists = any(one.rcode != NXDOMAIN for one in answers)
    return Said(exists=exists, addresses=addresses, chain=chain, local=local)
