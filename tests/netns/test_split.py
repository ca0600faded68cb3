"""The split registries of the lab are what they stand for, before anybody is judged by them."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from ramnet.errors import LabError
from ramnet.lab import split, tokens
from ramnet.lab.image import MANIFEST
from ramnet.lab.lab import Lab
from ramnet.lab.nginx import Site
from ramnet.lab.split import ECR, HUB, QUAY, SplitRegistries

pytestmark = pytest.mark.netns

# One request, and no redirect followed: [status, headers, the body's size, the body if it is JSON].
FETCH = """
import http.client, json, socket, ssl, sys
from urllib.parse import urlsplit
url, headers, address = json.load(sys.stdin)
parts = urlsplit(url)
context = ssl.create_default_context()
raw = socket.create_connection((address or parts.hostname, parts.port or 443), 5)
sock = context.wrap_socket(raw, server_hostname=parts.hostname)
link = http.client.HTTPSConnection(parts.hostname)
link.sock = sock
link.request("GET", f"{parts.path}?{parts.query}", headers=headers)
answer = link.getresponse()
body = answer.read()
try:
    value = json.loads(body)
except ValueError:
    value = None
said = {name.lower(): text for name, text in answer.getheaders()}
print(json.dumps([answer.status, said, len(body), value]))
"""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    size: int
    value: Any


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(registries=False, records=split.RECORDS) as made:
        yield made


@pytest.fixture(scope="module")
def servers(lab: Lab) -> SplitRegistries:
    made = lab.split(HUB, ECR, QUAY)
    made.registries.add_image("private/app")
    return made


def fetch(lab: Lab, url: str, address: str | None = None, **headers: str) -> Answer:
    request = json.dumps([url, headers, address])
    said = lab.client.run([sys.executable, "-I", "-c", FETCH], input=request).stdout
    return Answer(*json.loads(said))


def basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def scope(repository: str) -> str:
    return f"service=registry.docker.io&scope=repository:{repository}:pull"


def bearer(lab: Lab, repository: str, **headers: str) -> str:
    said = fetch(lab, f"https://auth.docker.io/token?{scope(repository)}", **headers)
    assert said.status == 200
    return f"Bearer {said.value['token']}"


def blob_of(lab: Lab, repository: str, token: str) -> tuple[str, int]:
    """The URL of an image's configuration and its size."""
    at = f"https://{HUB.api}/v2/{repository}"
    manifest = fetch(lab, f"{at}/manifests/latest", Authorization=token, Accept=MANIFEST)
    assert manifest.status == 200
    config = manifest.value["config"]
    return f"{at}/blobs/{config['digest']}", config["size"]


@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize(
    ("layout", "challenge"),
    [
        (HUB, 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io"'),
        (QUAY, 'Bearer realm="https://quay.io/v2/auth",service="quay.io"'),
        (ECR, f'Basic realm="https://{ECR.api}/"'),
    ],
    ids=["token-elsewhere", "token-same-host", "basic"],
)
def test_each_says_how_it_wants_to_be_asked(lab: Lab, layout: split.Layout, challenge: str) -> None:
    said = fetch(lab, f"https://{layout.api}/v2/")
    assert said.status == 401
    assert said.headers["www-authenticate"] == challenge


@pytest.mark.usefixtures("servers")
def test_a_token_opens_its_repository_and_no_other(lab: Lab) -> None:
    at = f"https://{HUB.api}/v2"
    token = bearer(lab, "acme/app")
    assert fetch(lab, f"{at}/acme/app/manifests/latest", Authorization=token).status == 200
    assert fetch(lab, f"{at}/library/busybox/manifests/latest", Authorization=token).status == 401
    tampered = f"{token[:-4]}AAAA"
    assert fetch(lab, f"{at}/acme/app/manifests/latest", Authorization=tampered).status == 401
    private = bearer(lab, "private/app")
    assert fetch(lab, f"{at}/private/app/manifests/latest", Authorization=private).status == 401
    known = basic(tokens.USER, tokens.PASSWORD)
    private = bearer(lab, "private/app", Authorization=known)
    assert fetch(lab, f"{at}/private/app/manifests/latest", Authorization=private).status == 200
    wrong = basic(tokens.USER, "wrong")
    said = fetch(lab, f"https://auth.docker.io/token?{scope('private/app')}", Authorization=wrong)
    assert said.status == 401


@pytest.mark.usefixtures("servers")
def test_basic_takes_its_own_password_only(lab: Lab) -> None:
    at = f"https://{ECR.api}/v2/"
    right = basic(split.BASIC_USER, split.BASIC_PASSWORD)
    assert fetch(lab, at, Authorization=right).status == 200
    assert fetch(lab, at, Authorization=basic(split.BASIC_USER, "wrong")).status == 401


def test_a_blob_is_on_another_host_which_wants_no_credentials(
    lab: Lab, servers: SplitRegistries
) -> None:
    token = bearer(lab, "acme/app")
    url, size = blob_of(lab, "acme/app", token)
    said = fetch(lab, url, Authorization=token)
    assert said.status == 307
    place = said.headers["location"]
    assert place.startswith(f"https://{HUB.blobs}/docker/registry/v2/blobs/sha256/")
    before = len(servers.served(HUB.blobs))
    blob = fetch(lab, place)
    assert (blob.status, blob.size) == (200, size)
    assert fetch(lab, place, Authorization=token).status == 400
    seen = servers.served(HUB.blobs, least=before + 2)
    assert [one.status for one in seen][before:] == [200, 400]


def test_blobs_move_and_come_back(lab: Lab, servers: SplitRegistries) -> None:
    token = bearer(lab, "acme/app")
    url, size = blob_of(lab, "acme/app", token)
    servers.blobs_at(HUB, split.UNLISTED)
    try:
        place = fetch(lab, url, Authorization=token).headers["location"]
        assert place.startswith(f"https://{split.UNLISTED}/")
        assert fetch(lab, place).size == size
    finally:
        servers.blobs_at(HUB, None)
    assert fetch(lab, url, Authorization=token).size == size
    servers.blobs_at(HUB, HUB.blobs)
    assert fetch(lab, url, Authorization=token).status == 307


def test_a_host_answers_for_itself_only_and_at_all_its_addresses(
    lab: Lab, servers: SplitRegistries
) -> None:
    hub = servers.addresses(HUB.api)
    assert len(hub) == 4
    assert any(":" in address for address in hub)
    assert {fetch(lab, f"https://{HUB.api}/v2/", address).status for address in hub} == {401}
    foreign = fetch(lab, "https://registry.corp.example/v2/", hub[0])
    assert foreign.status == 421


def test_a_site_of_a_test(lab: Lab, servers: SplitRegistries) -> None:
    addresses = servers.addresses("evil.example")
    servers.serve(Site("evil.example", addresses, "        return 302 https://x.example/;"))
    said = fetch(lab, "https://evil.example/any")
    assert (said.status, said.headers["location"]) == (302, "https://x.example/")
    assert servers.served("evil.example", least=1)[-1].uri == "/any?"


def test_misuse_is_explained(servers: SplitRegistries) -> None:
    with pytest.raises(LabError, match=r"no address of nowhere\.example"):
        servers.addresses("nowhere.example")
    with Lab() as full, pytest.raises(LabError, match="every address"):
        full.split(HUB)


def test_a_token_grants_what_its_bearer_may_have() -> None:
    asked = ["repository:a/b:pull,push", "repository:private/x:pull registry:catalog:*", "::", ""]
    assert tokens.granted(asked, known=False) == [
        {"type": "repository", "name": "a/b", "actions": ["pull"]}
    ]
    names = [one["name"] for one in tokens.granted(asked, known=True)]
    assert names == ["a/b", "private/x"]
