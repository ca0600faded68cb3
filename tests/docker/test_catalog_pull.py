"""Registries that send clients elsewhere are pulled from with nothing but their name in the policy.

Tokens come from one host, layers from another, as at Docker Hub, ECR and Quay, of real servers.
What the catalogue does not know is refused, and ``doctor`` says which line is missing.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from ramnet.lab import split
from ramnet.lab.dns import records
from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.ramnet import Daemon
from ramnet.lab.split import ECR, HUB, LOG_SECONDS, QUAY, Layout, SplitRegistries
from tests.docker.support import Said, docker, pull
from tests.netns.support import Ramnet, policy, status, wait_status

pytestmark = pytest.mark.docker

# Its token server is another host of the same company, which nobody catalogued.
CORP = Layout(
    api="registry.corp.example",
    realm="sso.corp.example/token",
    service="registry.corp.example",
    blobs="registry.corp.example.s3.example",
)
CORP_RECORDS = records(
    {
        "sso.corp.example": ["198.51.100.91", "2001:db8::91"],
        "registry.corp.example.s3.example": ["198.51.100.92", "2001:db8::92"],
    }
)
# Each has a layer of its own: an engine does not ask for what it has from elsewhere.
IMAGES = {
    HUB.api: "at-hub",
    QUAY.api: f"{QUAY.api}/acme/at-quay",
    ECR.api: f"{ECR.api}/acme/at-ecr",
    CORP.api: f"{CORP.api}/acme/at-corp",
}
REPOSITORIES = ("library/at-hub", "acme/at-quay", "acme/at-ecr", "acme/at-corp")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    known = {**split.RECORDS, **CORP_RECORDS}
    with Lab(registries=False, engine=True, engine_cgroup=True, records=known) as made:
        yield made


@pytest.fixture(scope="module")
def all_servers(lab: Lab) -> SplitRegistries:
    """All of them; whoever has credentials for ECR has given them to the engine."""
    servers = lab.split(HUB, ECR, QUAY, CORP)
    for repository in REPOSITORIES:
        servers.registries.add_image(repository, files={"name": repository.encode()})
    said = docker(lab, "login", "-u", split.BASIC_USER, "-p", split.BASIC_PASSWORD, ECR.api)
    assert said.worked, said.everything
    return servers


@pytest.fixture
def servers(lab: Lab, all_servers: SplitRegistries) -> Iterator[SplitRegistries]:
    """The servers, each with its blobs at home when the test begins and when it is over.

    Without ramnet every image can be pulled: the control of each test.
    """
    for image in IMAGES.values():
        said = pull(lab, image)
        assert said.worked, said.everything
    yield all_servers
    all_servers.blobs_at(HUB, HUB.blobs)


@pytest.fixture
def ramnet(lab: Lab) -> Iterator[Ramnet]:
    factory = Ramnet(lab, [], f'[scope]\nmode = "cgroup"\ncgroups = ["{lab.engine_group}"]\n')
    yield factory
    for daemon in factory.made:
        daemon.abandon()
    for family in ("inet", "netdev"):
        lab.client.run(["nft", "delete", "table", family, "ramnet"], check=False)


def blobs(servers: SplitRegistries, host: str | None) -> int:
    """Count the blobs that a host has given away."""
    assert host is not None
    return sum(one.status == 200 and "/blobs/" in one.uri for one in servers.served(host))


def pulled(lab: Lab, servers: SplitRegistries, image: str, blob_host: str | None) -> Said:
    """Pull, and make sure that the layers came from where they are."""
    before = blobs(servers, blob_host)
    said = pull(lab, image)
    assert said.worked, said.everything
    # nginx writes a request down after the client has the answer.
    wait_until(lambda: blobs(servers, blob_host) > before, LOG_SECONDS, f"a blob from {blob_host}")
    return said


@pytest.mark.parametrize(
    ("address", "layout"),
    [("docker.io", HUB), ("quay.io", QUAY), (ECR.api, ECR)],
    ids=["docker-hub", "quay", "ecr"],
)
def test_its_catalogued_name_is_enough(
    lab: Lab, servers: SplitRegistries, ramnet: Ramnet, address: str, layout: Layout
) -> None:
    daemon = ramnet(policy(address))
    assert status(daemon)["state"] == "enforcing"
    others = {api: image for api, image in IMAGES.items() if api != layout.api}
    with lab.capture() as capture:
        pulled(lab, servers, IMAGES[layout.api], layout.blobs)
        for image in others.values():
            assert pull(lab, image).refused
        for api in others:
            assert capture.to(servers.addresses(api)) == ()
        assert capture.to(servers.addresses(layout.api))


def test_a_token_server_and_a_blob_host_are_listed_by_hand_where_nobody_catalogued_them(
    lab: Lab, servers: SplitRegistries, ramnet: Ramnet
) -> None:
    assert CORP.blobs is not None
    hosts = json.dumps(["sso.corp.example", CORP.blobs])
    daemon = ramnet(policy(CORP.api, more=f"extra_hosts = {hosts}\n"))
    assert status(daemon)["state"] == "enforcing"
    pulled(lab, servers, IMAGES[CORP.api], CORP.blobs)


# --- what the catalogue does not know is named by doctor, and allowed by the line that it suggests


def doctor(daemon: Daemon, image: str) -> tuple[int, dict[str, Any]]:
    """Run ``ramnet doctor`` as the engine; its exit status and its report."""
    done = daemon.cli(
        *("doctor", image, "--as", "engine", "--json"),
        *("--policy", str(daemon.policy_file), "--config", str(daemon.config_file)),
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def follow(daemon: Daemon, command: str) -> None:
    """Do what was suggested, as a person would, and wait until it is in force."""
    before = status(daemon)["policy"]["digest"]
    words = shlex.split(command)
    assert words[0] == "ramnet"
    daemon.cli(*words[1:], "--policy", str(daemon.policy_file), check=True)
    wait_status(daemon, lambda said: said["policy"]["digest"] != before, "the new policy")


CASES = {
    "unlisted": (split.UNLISTED, f"--extra-host {split.UNLISTED}"),
    "another-region": (split.HUB_REGIONAL, "--region eu-west-1"),
}


@pytest.mark.parametrize(("blob_host", "option"), CASES.values(), ids=CASES)
def test_doctor_names_a_blob_host_and_its_line_makes_the_pull_pass(
    lab: Lab, servers: SplitRegistries, ramnet: Ramnet, blob_host: str, option: str
) -> None:
    servers.blobs_at(HUB, blob_host)
    # The control, without ramnet.
    pulled(lab, servers, IMAGES[HUB.api], blob_host)
    daemon = ramnet(policy("docker.io"))
    with lab.capture() as capture:
        assert pull(lab, IMAGES[HUB.api]).refused
        found, report = doctor(daemon, IMAGES[HUB.api])
        assert capture.to(servers.addresses(blob_host)) == ()
        assert capture.to(servers.addresses(HUB.api))
    assert found == 1
    assert report["dialled_as"] == "engine"
    [missing] = report["missing"]
    assert missing["host"] == blob_host
    command = missing["advice"]["command"]
    assert command == f"ramnet policy add docker.io {option}"
    follow(daemon, command)
    pulled(lab, servers, IMAGES[HUB.api], blob_host)
    found, report = doctor(daemon, IMAGES[HUB.api])
    assert found == 0, report
    # What was not suggested is refused as before.
    assert pull(lab, IMAGES[QUAY.api]).refused


def test_doctor_leads_from_an_empty_policy_to_a_pull(
    lab: Lab, servers: SplitRegistries, ramnet: Ramnet
) -> None:
    """The registry, its token server, its bucket: each run names the next one."""
    image = IMAGES[CORP.api]
    daemon = ramnet(policy("docker.io"))
    for host in (CORP.api, "sso.corp.example", str(CORP.blobs)):
        assert pull(lab, image).refused
        found, report = doctor(daemon, image)
        assert found == 1
        [missing] = report["missing"]
        assert missing["host"] == host
        follow(daemon, missing["advice"]["command"])
    pulled(lab, servers, image, CORP.blobs)
    assert doctor(daemon, image)[0] == 0
