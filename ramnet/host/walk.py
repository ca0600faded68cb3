"""Walks a pull as a client would: ping, realm, manifest, configuration, layers, every redirect.

Each step is judged first. What the policy refuses is not dialled: DNS tells about it, and the walk
ends where a pull would.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

from ramnet.core.catalog import CatalogHost
from ramnet.core.challenge import (
    MAX_TOKEN,
    Challenge,
    Credentials,
    parse_challenges,
    pull_scope,
    read_token,
    token_pairs,
    token_realm,
    wanted,
)
from ramnet.core.hops import Companion, Dns, Hop, Judge, Role
from ramnet.core.manifests import (
    ACCEPT,
    MAX_MANIFEST,
    Index,
    Manifest,
    Part,
    Platform,
    choose,
    foreign,
    is_content,
    read_manifest,
)
from ramnet.core.urls import PORTS, Url, parse_url
from ramnet.errors import WireError
from ramnet.host.dial import Answer, Trust, lookup
from ramnet.host.follow import (
    LOGIN,
    UNAUTHORIZED,
    Arrived,
    Client,
    Steps,
    basic,
    collected,
    meaning,
)

# Each costs a request; images have ten layers or so, and hosts differ between few of them.
MAX_LAYERS: Final = 32
# Of a layer only the beginning is read: that it comes is what is wanted.
SNIFF: Final = 4096
# At once: where no resolver answers, one after the other takes ten seconds each.
LOOKUPS: Final = 8
MAX_ERROR: Final = 16 * 1024
MAX_ANSWER: Final = MAX_TOKEN * 4  # the token is in it twice, and words beside


@dataclass(slots=True)
class Walker:
    """One walk. ``credentials`` are for a registry that wants to know who pulls.

    ``trust`` holds whom TLS believes; ``insecure``: plain HTTP is tried after HTTPS, as Docker
    does for such registries.
    """

    judge: Judge
    platform: Platform
    trust: Trust
    credentials: Credentials | None = None
    insecure: bool = False
    _client: Client = field(init=False)
    _arrived: set[tuple[object, ...]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._client = Client(self.judge, self.trust)

    def hops(self) -> Iterator[Hop]:
        """Go; each hop is told when it is done."""
        base = yield from self._ping()
        if base is None:
            return
        reference = self.judge.reference
        word = reference.digest or reference.tag or "latest"
        manifest = yield from self._manifest(base, word)
        if isinstance(manifest, Index):
            try:
                part = choose(manifest, self.platform)
            except WireError as err:
                yield self._client.unmade(
                    Role.MANIFEST, self._path(base, "manifests", word), err.message
                )
                return
            manifest = yield from self._manifest(base, part.digest)
            if isinstance(manifest, Index):
                url = self._path(base, "manifests", part.digest)
                yield self._client.unmade(
                    Role.MANIFEST, url, "an index of indexes, which no engine pulls"
                )
                return
        if manifest is None:
            return
        if (yield from self._blob(base, Role.CONFIG, manifest.config)):
            yield from self._layers(base, manifest)

    # --- the registry

    def _ping(self) -> Generator[Hop, None, Url | None]:
        """Find out how the registry is spoken to; return where it is."""
        wire = self.judge.reference.wire
        host = wire.pattern.name if wire.pattern is not None else wire.ip
        assert host is not None  # noqa: S101 - an address is a pattern or an IP
        failed: list[Hop] = []
        for scheme in ("https", "http") if self.insecure else ("https",):
            url = Url(scheme, host, wire.port or PORTS[scheme], "/v2/")
            self._client.origin = url.origin
            told, arrived = collected(self._client.follow(Role.PING, url, {}, MAX_ERROR))
            if arrived is None:
                failed += told
                continue
            yield from told
            if (yield from self._answered(arrived, "it does not answer as a registry")):
                return url
            return None
        yield from failed
        return None

    def _answered(self, arrived: Arrived, else_said: str) -> Generator[Hop, None, bool]:
        """Tell a hop that may have answered with a challenge, and meet that; True: go on."""
        hop, answer = arrived.hop, arrived.answer
        if arrived.ok:
            yield hop
            return True
        if answer.status != UNAUTHORIZED or self._client.authorization:
            yield replace(hop, error=self._said(answer, else_said))
            return False
        if hop.url.origin != self._client.origin:
            # Who is redirected to must not say where the registry's login is sent.
            yield replace(hop, error="it asks for a login, and is not the registry itself")
            return False
        try:
            challenge = wanted(parse_challenges(answer.all("WWW-Authenticate")))
        except WireError as err:
            yield replace(hop, error=f"it asks for {err.message}")
            return False
        if challenge is None:
            yield replace(hop, error="it wants a login, and does not say by what (no challenge)")
            return False
        return (yield from self._authenticate(hop, challenge))

    def _authenticate(self, hop: Hop, challenge: Challenge) -> Generator[Hop, None, bool]:
        who = self.credentials
        if challenge.scheme == "basic":
            if who is None or who.identity:
                yield replace(hop, error="it wants a login; --credentials uses Docker's")
                return False
            self._client.authorization = basic(who)
            yield hop
            return True
        try:
            realm = token_realm(challenge, hop.url)
        except WireError as err:
            yield replace(hop, error=err.message)
            return False
        yield hop
        return (yield from self._token(realm, challenge, who))

    def _token(
        self, realm: Url, challenge: Challenge, who: Credentials | None
    ) -> Generator[Hop, None, bool]:
        plain = realm.scheme != "https" and not (self.insecure and self._client.at_home(realm))
        if who is not None and plain:
            why = "credentials are not sent there without TLS"
            yield self._client.unmade(Role.TOKEN, realm, why)
            return False
        pairs = token_pairs(challenge, pull_scope(self.judge.reference.path), who)
        if who is not None and who.identity:
            form = Url("https", realm.host, realm.port, "/").with_query(pairs).query or ""
            arrived = yield from self._client.follow(
                Role.TOKEN, realm, {}, MAX_ANSWER, body=form.encode()
            )
        else:
            headers = {} if who is None else {"Authorization": basic(who)}
            arrived = yield from self._client.follow(
                Role.TOKEN, realm.with_query(pairs), headers, MAX_ANSWER
            )
        if arrived is None:
            return False
        if not arrived.ok:
            yield replace(arrived.hop, error=self._said(arrived.answer, "it gives no token"))
            return False
        try:
            self._client.authorization = f"Bearer {read_token(arrived.answer.body)}"
        except WireError as err:
            yield replace(arrived.hop, error=err.message)
            return False
        yield arrived.hop
        return True

    def _get(self, role: Role, url: Url, accept: str, limit: int) -> Steps:
        """Ask the registry, and once more when only then it wants to know who asks."""
        for _ in range(2):
            headers = {"Accept": accept} if accept else {}
            arrived = yield from self._client.follow(role, url, headers, limit)
            if (
                arrived is None
                or arrived.answer.status != UNAUTHORIZED
                or self._client.authorization
            ):
                return arrived
            if not (yield from self._answered(arrived, "it does not answer")):
                return None
        return None

    def _manifest(self, base: Url, word: str) -> Generator[Hop, None, Manifest | Index | None]:
        url = self._path(base, "manifests", word)
        arrived = yield from self._get(Role.MANIFEST, url, ACCEPT, MAX_MANIFEST + 1)
        if arrived is None:
            return None
        if not arrived.ok:
            yield replace(arrived.hop, error=self._said(arrived.answer, "it gives no manifest"))
            return None
        try:
            found = _manifest(arrived.answer, word)
        except WireError as err:
            yield replace(arrived.hop, error=err.message)
            return None
        yield arrived.hop
        return found

    # --- what it is made of

    def _layers(self, base: Url, manifest: Manifest) -> Iterator[Hop]:
        """Ask for each layer; what comes from where others came from already is not told again."""
        for layer in manifest.layers[:MAX_LAYERS]:
            if not layer.urls and not (yield from self._blob(base, Role.LAYER, layer)):
                return
        for text in foreign(manifest.layers)[:MAX_LAYERS]:
            try:
                url = parse_url(text)
            except WireError as err:
                yield self._client.unmade(Role.LAYER, base, f"a foreign layer is at {err.message}")
                return
            if url.origin not in self._arrived:
                arrived = yield from self._client.follow(Role.LAYER, url, {}, SNIFF)
                if arrived is not None:
                    yield from self._end(arrived)

    def _blob(self, base: Url, role: Role, part: Part) -> Generator[Hop, None, bool]:
        url = self._path(base, "blobs", part.digest)
        hops, arrived = collected(self._get(role, url, "", SNIFF))
        if arrived is not None:
            hops += self._end(arrived)
        chain = (role, *(hop.url.origin for hop in hops))
        good = all(hop.passed for hop in hops)
        if not good or chain not in self._arrived:
            yield from hops
        if good:
            self._arrived.add(chain)
        return good

    def _end(self, arrived: Arrived) -> Iterator[Hop]:
        if arrived.ok:
            yield arrived.hop
        else:
            yield replace(
                arrived.hop, error=self._said(arrived.answer, "it does not give the blob")
            )

    def _said(self, answer: Answer, what: str) -> str:
        """Say what a status means here, and what might help."""
        said = meaning(answer, what)
        if self.credentials is None and answer.status in LOGIN:
            return f"{said} (--credentials uses Docker's logins)"
        return said

    def _path(self, base: Url, kind: str, word: str) -> Url:
        path = f"/v2/{self.judge.reference.path}/{kind}/{word}"
        return Url(base.scheme, base.host, base.port, path)


def judged_only(judge: Judge) -> Iterator[Hop]:
    """Judge the registry itself, which is all that can be known without going there."""
    wire = judge.reference.wire
    host = wire.pattern.name if wire.pattern is not None else wire.ip
    assert host is not None  # noqa: S101 - an address is a pattern or an IP
    url = Url("https", host, wire.port or PORTS["https"], "/v2/")
    verdict = judge.verdict(host, url.port)
    yield Hop(Role.PING, url, verdict, lookup(host, url.port)[0])


def companions(judge: Judge) -> Iterator[Companion]:
    """Judge the hosts that the catalogue has for the registry; DNS is asked, they are not."""

    def judged(host: CatalogHost) -> Companion:
        name = host.pattern.name
        dns = Dns() if host.pattern.wildcard else lookup(name, min(host.ports))[0]
        return Companion(host, judge.judged(host), dns)

    with ThreadPoolExecutor(LOOKUPS) as pool:
        yield from pool.map(judged, judge.companions())


def _manifest(answer: Answer, word: str) -> Manifest | Index:
    if ":" in word and not is_content(word, answer.body):
        raise WireError("the manifest is not what its digest says", where="manifest")
    return read_manifest(answer.header("Content-Type"), answer.body)
