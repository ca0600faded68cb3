"""``ramnet doctor REF`` against real registries: every hop told, what is missing named, no harm."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator

import pytest

from ramnet.lab import split, tokens
from ramnet.lab.lab import Lab
from ramnet.lab.nginx import Site
from ramnet.lab.programs import PYTHON_PATH
from ramnet.lab.split import ECR, HUB, QUAY, SplitRegistries
from tests.netns.doctoring import (
    CORP,
    DOCTOR_SECONDS,
    LOOP,
    PLAIN,
    V6,
    Told,
    ask_doctor,
    blobs_at,
    docker_config,
    doctored_lab,
    program,
)
from tests.netns.support import Ramnet, policy, remove_rules

pytestmark = pytest.mark.netns

USER = 65534
ALLOWED, DENIED = 0, 1


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Lab, SplitRegistries]]:
    with doctored_lab() as made:
        yield made


@pytest.fixture(scope="module")
def lab(world: tuple[Lab, SplitRegistries]) -> Lab:
    return world[0]


@pytest.fixture(scope="module")
def servers(world: tuple[Lab, SplitRegistries]) -> SplitRegistries:
    return world[1]


@pytest.fixture
def ramnet(lab: Lab) -> Iterator[Ramnet]:
    factory = Ramnet(lab, [], f'[scope]\nmode = "cgroup"\ncgroups = ["{lab.engine_group}"]\n')
    yield factory
    for daemon in factory.made:
        daemon.abandon()
    remove_rules(lab.client)


# --- pulls that pass

WALKS = {
    "token-elsewhere": (
        "busybox",
        "docker.io",
        [
            ("ping", HUB.api, 401),
            ("token", "auth.docker.io", 200),
            ("manifest", HUB.api, 200),
            ("config", HUB.api, 307),
            ("redirect", HUB.blobs, 200),
            ("layer", HUB.api, 307),
            ("redirect", HUB.blobs, 200),
        ],
    ),
    "token-same-host": (
        "quay.io/acme/app:latest",
        "quay.io",
        [
            ("ping", QUAY.api, 401),
            ("token", QUAY.api, 200),
            ("manifest", QUAY.api, 200),
            ("config", QUAY.api, 307),
            ("redirect", QUAY.blobs, 200),
            ("layer", QUAY.api, 307),
            ("redirect", QUAY.blobs, 200),
        ],
    ),
    "no-auth-ipv6-only": (
        f"{V6.api}/acme/app",
        V6.api,
        [
            ("ping", V6.api, 200),
            ("manifest", V6.api, 200),
            ("config", V6.api, 200),
            ("layer", V6.api, 200),
        ],
    ),
}


@pytest.mark.parametrize(("image", "listed", "hops"), WALKS.values(), ids=WALKS)
def test_an_anonymous_walk_tells_every_hop(
    servers: SplitRegistries,
    ramnet: Ramnet,
    image: str,
    listed: str,
    hops: list[tuple[str, str, int]],
) -> None:
    before = len(servers.served())
    told = ask_doctor(ramnet(policy(listed), start=False), image)
    assert told.hops == hops
    assert told.status == ALLOWED
    assert told.report["passed"]
    assert told.missing == {}
    # The servers saw what was told, and nothing that was not: each request once.
    served = servers.served(least=before + len(hops))[before:]
    seen = [(one.host, one.status) for one in served]
    assert seen == [(host, status) for _, host, status in hops]
    for hop in told.report["hops"]:
        assert hop["allowed"]
        assert hop["dialled"]
        assert hop["error"] is None
        assert hop["address"] in servers.addresses(hop["host"])
        assert set(hop["dns"]["addresses"]) == set(servers.addresses(hop["host"]))


def test_what_dns_says_of_a_host_is_told(ramnet: Ramnet) -> None:
    told = ask_doctor(ramnet(policy("quay.io"), start=False), "quay.io/acme/app")
    assert told.report["hops"][0]["dns"]["cname"] == "quay.pool.example"


def test_an_image_by_digest(servers: SplitRegistries, ramnet: Ramnet) -> None:
    digest = servers.registries.add_image("acme/by-digest")
    told = ask_doctor(
        ramnet(policy("docker.io"), start=False), f"docker.io/acme/by-digest@{digest}"
    )
    assert told.status == ALLOWED


def test_an_image_that_is_not_there(ramnet: Ramnet) -> None:
    told = ask_doctor(ramnet(policy(V6.api), start=False), f"{V6.api}/acme/none")
    assert told.status == DENIED
    assert (told.last["role"], told.last["status"]) == ("manifest", 404)
    assert told.last["error"]
    assert told.missing == {}  # which no policy can help


# --- what the policy lacks


def test_a_blob_host_that_is_not_listed(lab: Lab, servers: SplitRegistries, ramnet: Ramnet) -> None:
    daemon = ramnet(policy("docker.io"), start=False)
    with blobs_at(servers, HUB, split.UNLISTED), lab.capture() as capture:
        told = ask_doctor(daemon, "busybox")
        assert capture.to(servers.addresses(split.UNLISTED)) == ()
        assert capture.to(servers.addresses(HUB.api), ports=[443])
    assert told.status == DENIED
    assert not told.report["passed"]
    assert told.missing == {
        split.UNLISTED: {
            "kind": "extra-host",
            "address": "docker.io",
            "value": split.UNLISTED,
            "toml": f'extra_hosts = ["{split.UNLISTED}"]\n',
            "command": f"ramnet policy add docker.io --extra-host {split.UNLISTED}",
        }
    }
    [hop] = {hop["url"]: hop for hop in told.report["hops"] if not hop["allowed"]}.values()
    assert (hop["role"], hop["dialled"], hop["status"]) == ("redirect", False, None)
    # What DNS alone can tell is told.
    assert hop["dns"]["cname"] == "edge.blobs.example"
    assert set(hop["dns"]["addresses"]) == set(servers.addresses(split.UNLISTED))


def test_a_blob_host_of_another_region(servers: SplitRegistries, ramnet: Ramnet) -> None:
    with blobs_at(servers, HUB, split.HUB_REGIONAL):
        told = ask_doctor(ramnet(policy("docker.io"), start=False), "busybox")
        [advice] = told.missing.values()
        assert (advice["kind"], advice["value"]) == ("region", "eu-west-1")
        regions = 'regions = ["us-east-1", "eu-west-1"]\n'
        listed = ask_doctor(ramnet(policy("docker.io", more=regions), start=False), "busybox")
        assert listed.status == ALLOWED
    assert told.status == DENIED


def test_a_token_server_that_is_not_listed(
    lab: Lab, servers: SplitRegistries, ramnet: Ramnet
) -> None:
    with lab.capture() as capture:
        told = ask_doctor(ramnet(policy(CORP.api), start=False), f"{CORP.api}/acme/app")
        assert capture.to(servers.addresses("sso.corp.example")) == ()
    assert told.status == DENIED
    assert (told.last["role"], told.last["host"]) == ("token", "sso.corp.example")
    assert not told.last["allowed"]
    assert not told.last["dialled"]
    command = told.missing["sso.corp.example"]["command"]
    assert command == f"ramnet policy add {CORP.api} --extra-host sso.corp.example"


def test_both_are_found_one_after_the_other(ramnet: Ramnet) -> None:
    listed: list[str] = []
    for expected in ("sso.corp.example", "bucket.corp.example"):
        more = f"extra_hosts = {json.dumps(listed)}\n"
        told = ask_doctor(ramnet(policy(CORP.api, more=more), start=False), f"{CORP.api}/acme/app")
        assert told.status == DENIED
        assert list(told.missing) == [expected]
        listed.append(expected)
    more = f"extra_hosts = {json.dumps(listed)}\n"
    told = ask_doctor(ramnet(policy(CORP.api, more=more), start=False), f"{CORP.api}/acme/app")
    assert told.status == ALLOWED


def test_a_registry_that_is_refused_is_told_without_going_there(
    lab: Lab, servers: SplitRegistries, ramnet: Ramnet
) -> None:
    with lab.capture() as capture:
        told = ask_doctor(ramnet(policy("quay.io"), start=False), "busybox")
        assert capture.syns == ()
    assert told.status == DENIED
    [hop] = told.report["hops"]
    assert (hop["role"], hop["host"], hop["dialled"]) == ("ping", HUB.api, False)
    assert set(hop["dns"]["addresses"]) == set(servers.addresses(HUB.api))
    assert told.missing[HUB.api]["command"] == "ramnet policy add docker.io"
    companions = {item["host"]: item for item in told.report["companions"]}
    for host in ("auth.docker.io", HUB.blobs):
        assert host is not None
        assert not companions[host]["allowed"]
        assert set(companions[host]["dns"]["addresses"]) == set(servers.addresses(host))
    assert told.report["catalogue"]["key"] == "docker.io"


def test_containers_are_judged_and_nothing_is_dialled(lab: Lab, ramnet: Ramnet) -> None:
    daemon = ramnet(policy("docker.io"), start=False)
    with lab.capture() as capture:
        allowed = ask_doctor(daemon, "busybox", "--as", "containers")
        refused = ask_doctor(daemon, "quay.io/acme/app", "--as", "containers")
        assert capture.syns == ()
    for told in (allowed, refused):
        assert told.report["class"] == "containers"
        assert told.report["dialled_as"] is None
        assert told.report["because"]
    assert refused.status == DENIED
    assert list(refused.missing) == [QUAY.api]
    assert allowed.missing == {}


# --- credentials


def basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


HUB_KEY = "https://index.docker.io/v1/"
HELPER = f"""\
read -r server
case "$1 $server" in
    "get {ECR.api}") user={split.BASIC_USER} ;;
    "get {HUB_KEY}") user={tokens.USER} ;;
    *) echo "credentials not found in native keychain"; exit 1 ;;
esac
printf '{{"ServerURL": "%s", "Username": "%s", "Secret": "{tokens.PASSWORD}"}}\\n' "$server" $user
"""
CONFIGS: dict[str, dict[str, object]] = {
    "auths": {
        "auths": {
            HUB_KEY: {"auth": basic(tokens.USER, tokens.PASSWORD)},
            ECR.api: {"auth": basic(split.BASIC_USER, split.BASIC_PASSWORD)},
        }
    },
    "identity-token": {
        "auths": {
            HUB_KEY: {"auth": basic(tokens.USER, ""), "identitytoken": tokens.IDENTITY},
            ECR.api: {"auth": basic(split.BASIC_USER, split.BASIC_PASSWORD)},
        }
    },
    "helpers": {"credHelpers": {ECR.api: "lab", HUB_KEY: "lab"}},
    "store": {"credsStore": "lab", "auths": {ECR.api: {}, HUB_KEY: {}}},
}
SECRETS = (tokens.PASSWORD, tokens.IDENTITY, basic(tokens.USER, tokens.PASSWORD), "eyJ")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(
    ("image", "listed", "refused"),
    [
        ("private/app", "docker.io", ("manifest", 401)),
        (f"{ECR.api}/acme/app", ECR.api, ("ping", 401)),
    ],
    ids=["token", "basic"],
)
def test_credentials_open_what_is_closed_without(
    lab: Lab,
    ramnet: Ramnet,
    config: dict[str, object],
    image: str,
    listed: str,
    refused: tuple[str, int],
) -> None:
    daemon = ramnet(policy(listed), start=False)
    with docker_config(lab, config), program(lab, "docker-credential-lab", HELPER):
        without = ask_doctor(daemon, image)
        known = ask_doctor(daemon, image, "--credentials")
        shown = ask_doctor(daemon, image, "--credentials", as_json=False)
    assert without.status == DENIED
    assert (without.last["role"], without.last["status"]) == refused
    assert "--credentials" in without.last["error"]
    assert known.status == ALLOWED, known.out
    assert shown.status == ALLOWED
    for told in (known, shown):
        assert not any(secret in told.out + told.err for secret in SECRETS)


HELPERS = {
    "fails": "echo 'no keychain' >&2\nexit 1\n",
    "hangs": "exec sleep 1000\n",
    "babbles": "yes\n",
    "no-json": "echo 'error: \033[31m'\n",
    "no-object": "echo '[1]'\n",
    "odd-types": """echo '{"Username": 1, "Secret": {}}'\n""",
}


@pytest.mark.parametrize("script", HELPERS.values(), ids=HELPERS)
def test_a_helper_that_does_not_help_is_told(lab: Lab, ramnet: Ramnet, script: str) -> None:
    daemon = ramnet(policy(ECR.api), start=False)
    config: dict[str, object] = {"credHelpers": {ECR.api: "lab"}}
    with docker_config(lab, config), program(lab, "docker-credential-lab", script):
        told = ask_doctor(daemon, f"{ECR.api}/acme/app", "--credentials")
    assert told.status == DENIED
    assert "docker-credential-lab" in told.out + told.err
    assert "Traceback" not in told.err
    assert "\033" not in told.out + told.err
    assert told.seconds < 60
    assert "sleep 1000" not in lab.client.run(["ps", "ax"]).stdout


def test_a_helper_that_is_not_there_is_told(lab: Lab, ramnet: Ramnet) -> None:
    with docker_config(lab, {"credHelpers": {ECR.api: "nowhere"}}):
        told = ask_doctor(
            ramnet(policy(ECR.api), start=False), f"{ECR.api}/acme/app", "--credentials"
        )
    assert told.status == DENIED
    assert "docker-credential-nowhere" in told.out + told.err


def test_credentials_go_to_nobody_else(lab: Lab, servers: SplitRegistries, ramnet: Ramnet) -> None:
    """The blob host answers 400 to whoever sends them on; a stranger's realm gets none at all."""
    daemon = ramnet(policy("docker.io"), start=False)
    before = len(servers.served(HUB.blobs))
    with docker_config(lab, CONFIGS["auths"]):
        told = ask_doctor(daemon, "private/app", "--credentials")
    assert told.status == ALLOWED
    assert {one.status for one in servers.served(HUB.blobs, least=before + 2)[before:]} == {200}


# --- plain HTTP


def test_plain_http_where_docker_uses_it(lab: Lab, ramnet: Ramnet) -> None:
    daemon = ramnet(policy(f"{PLAIN.api}:5000"), start=False)
    image = f"{PLAIN.api}:5000/acme/app"
    told = ask_doctor(daemon, image)
    assert told.status == DENIED
    assert told.last["error"]
    settings = json.dumps({"insecure-registries": [f"{PLAIN.api}:5000"]})
    lab.client.write("/etc/docker/daemon.json", settings)
    try:
        told = ask_doctor(daemon, image)
    finally:
        lab.client.path("/etc/docker/daemon.json").unlink()
    assert told.status == ALLOWED, told.out
    assert told.last["url"].startswith(f"http://{PLAIN.api}:5000/")


def test_a_registry_on_localhost(lab: Lab, servers: SplitRegistries, ramnet: Ramnet) -> None:
    server = servers.registries.serve("127.0.0.1:5000", tls=False, sandbox=lab.client)
    server.wait_for_line("listening on")
    try:
        told = ask_doctor(ramnet(policy("localhost:5000"), start=False), "localhost:5000/acme/app")
    finally:
        server.kill()
    assert told.status == ALLOWED, told.out
    assert told.last["url"].startswith("http://localhost:5000/")


# --- redirects


def bounded(servers: SplitRegistries, host: str, before: int) -> None:
    assert len(servers.served(host, least=before + 1)) - before <= 20


def test_a_registry_that_redirects_to_itself_for_ever(
    servers: SplitRegistries, ramnet: Ramnet
) -> None:
    body = f"        return 302 https://{LOOP}$request_uri;"
    servers.serve(Site(LOOP, servers.addresses(LOOP), body))
    told = ask_doctor(ramnet(policy(LOOP), start=False), f"{LOOP}/acme/app")
    assert told.status == DENIED
    assert "redirect" in told.last["error"]
    bounded(servers, LOOP, 0)


def test_blobs_that_are_redirected_for_ever(servers: SplitRegistries, ramnet: Ramnet) -> None:
    body = f"        return 302 https://{LOOP}/x$request_uri;"
    servers.serve(Site(LOOP, servers.addresses(LOOP), body))
    before = len(servers.served(LOOP))
    daemon = ramnet(policy("docker.io", more=f'extra_hosts = ["{LOOP}"]\n'), start=False)
    with blobs_at(servers, HUB, LOOP):
        told = ask_doctor(daemon, "busybox")
    assert told.status == DENIED
    assert told.missing == {}
    bounded(servers, LOOP, before)


@pytest.mark.parametrize(
    ("place", "host"),
    [
        ("http://169.254.169.254/latest/meta-data/", "169.254.169.254"),
        ("https://[2001:db8::66]/blob", "2001:db8::66"),
        ("//evil.example/blob", "evil.example"),
        ("http://layers.example:8080/blob", "layers.example"),
    ],
    ids=["metadata", "ipv6", "without-scheme", "plain-port"],
)
def test_a_redirect_to_what_is_refused_is_not_followed(
    lab: Lab, servers: SplitRegistries, ramnet: Ramnet, place: str, host: str
) -> None:
    body = f"        absolute_redirect off;\n        return 307 {place};"
    servers.serve(Site(LOOP, servers.addresses(LOOP), body))
    daemon = ramnet(policy("docker.io", more=f'extra_hosts = ["{LOOP}"]\n'), start=False)
    with blobs_at(servers, HUB, LOOP), lab.capture() as capture:
        told = ask_doctor(daemon, "busybox")
        reached = {str(syn.dst) for syn in capture.syns}
    assert told.status == DENIED
    assert host in told.missing
    own = {one for api in (HUB.api, "auth.docker.io", LOOP) for one in servers.addresses(api)}
    assert reached <= own


def test_a_chain_of_redirects_some_of_them_relative(
    servers: SplitRegistries, ramnet: Ramnet
) -> None:
    body = f"""        absolute_redirect off;
        rewrite ^/docker(/.*)$ /elsewhere$1 redirect;
        rewrite ^/elsewhere(/.*)$ https://{HUB.blobs}/docker$1 permanent;"""
    servers.serve(Site(LOOP, servers.addresses(LOOP), body))
    daemon = ramnet(policy("docker.io", more=f'extra_hosts = ["{LOOP}"]\n'), start=False)
    with blobs_at(servers, HUB, LOOP):
        told = ask_doctor(daemon, "busybox")
    assert told.status == ALLOWED, told.out
    assert told.hops[-3:] == [
        ("redirect", LOOP, 302),
        ("redirect", LOOP, 301),
        ("redirect", HUB.blobs, 200),
    ]


# --- whose connections they are


def test_as_engine_it_dials_in_the_engines_group(
    lab: Lab, servers: SplitRegistries, ramnet: Ramnet
) -> None:
    daemon = ramnet(policy("docker.io"))
    with lab.capture() as capture:
        told = ask_doctor(daemon, "busybox", "--as", "engine")
        assert capture.to(servers.addresses(str(HUB.blobs)))
    assert told.status == ALLOWED, told.out
    assert told.report["dialled_as"] == "engine"
    # Whoever made the group for the walk has removed it.
    assert [one for one in lab.engine_cgroup.iterdir() if one.is_dir()] == []


# Everything is imported as root: a user may not read the Python that the tests run with.
_AS_USER = """
import multiprocessing.popen_fork, os, sys
import ramnet.cli.doctor, ramnet.host.dial, ramnet.host.dockerauth, ramnet.host.engineconf
import ramnet.host.walk, ramnet.host.walking
ramnet.core.catalog.load_catalog()
for codec in ("utf-8-sig", "idna"):
    "a".encode(codec)
os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
sys.exit(ramnet.cli.doctor.doctor(sys.argv[2:], standalone_mode=False))
"""


def test_only_root_can_dial_as_the_engine(lab: Lab, ramnet: Ramnet) -> None:
    daemon = ramnet(policy("docker.io"), start=False)
    argv = [sys.executable, "-c", _AS_USER, str(USER), "busybox", "--as", "engine", "--json"]
    argv += ["--policy", str(daemon.policy_file), "--config", str(daemon.config_file)]
    argv += ["--runtime-dir", str(daemon.runtime_dir)]
    env = {"PYTHONPATH": str(PYTHON_PATH)}
    done = lab.client.run(argv, env=env, check=False, timeout=DOCTOR_SECONDS)
    told = Told(done.returncode, done.stdout, done.stderr, 0.0)
    assert told.status == ALLOWED, told.out + told.err
    assert told.report["dialled_as"] == "caller"
    assert "root" in told.report["because"]


def test_the_kernel_refuses_what_the_policy_has_not(
    lab: Lab, servers: SplitRegistries, ramnet: Ramnet
) -> None:
    """The daemon has another policy than the file that doctor was given."""
    enforcing = ramnet(policy("quay.io"))
    other = ramnet(policy("docker.io"), start=False)
    with lab.capture() as capture:
        told = ask_doctor(other, "busybox", "--as", "engine")
        assert capture.to(servers.addresses(HUB.api)) == ()
    assert enforcing.running
    assert told.status == DENIED
    assert told.last["allowed"]
    assert told.last["dialled"]
    assert told.last["error"]


# --- as a person reads it


def test_the_text_names_the_host_and_the_line(servers: SplitRegistries, ramnet: Ramnet) -> None:
    daemon = ramnet(policy("docker.io"), start=False)
    with blobs_at(servers, HUB, split.UNLISTED):
        told = ask_doctor(daemon, "busybox", as_json=False)
    assert told.status == DENIED
    for words in (
        "auth.docker.io",
        split.UNLISTED,
        f'extra_hosts = ["{split.UNLISTED}"]',
        f"ramnet policy add docker.io --extra-host {split.UNLISTED}",
    ):
        assert words in told.out
    assert "Traceback" not in told.err


@pytest.mark.parametrize("reference", ["", "a b", "http://docker.io/x", "x@sha256:1"])
def test_a_malformed_reference_is_told(ramnet: Ramnet, reference: str) -> None:
    told = ask_doctor(ramnet(policy("docker.io"), start=False), reference, as_json=False)
    assert told.status == DENIED
    assert "Traceback" not in told.err
    assert "hint" in told.err
