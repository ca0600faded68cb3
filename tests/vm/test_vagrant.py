"""The provisioning scripts of the Vagrant lab, run for real, all on one machine."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from ramnet.lab.programs import require
from ramnet.lab.topology import CLIENT_V4, DNS_V4, DNS_V6
from ramnet.lab.world import CORP, DUAL, EVIL, QUAY
from tests.vm.installing import INSTALL_SECONDS, RAMNET, READY_SECONDS, status
from tests.vm.kernels import CHECKOUT
from tests.vm.vm import Done, Vm
from tests.vm.world import VmWorld

pytestmark = [pytest.mark.thorough("6.1"), pytest.mark.timeout(1200)]

SCRIPTS = "/mnt/code/vagrant/provision"
# The machine is registry, resolver and client in one: what it serves, it serves to the far side.
REGISTRY, ROGUE = "registry.corp.example", "evil.example"
CLIENT = {
    "LAB_CA": "/tmp/ramnet-lab/ca.pem",
    "LAB_DNS": f"{DNS_V4} {DNS_V6}",
    "LAB_POLICY": "/mnt/code/vagrant/policy.toml",
}


def provision(vm: Vm, script: str, **environment: str) -> Done:
    """Run a script as the Vagrantfile does."""
    environment["RAMNET_READY_SECONDS"] = f"{READY_SECONDS:.0f}"  # that of an emulated machine
    words = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    return vm.run(" ".join(["exec env", *words, f"{SCRIPTS}/{script}"]), seconds=INSTALL_SECONDS)


def main_pids(vm: Vm, *units: str) -> list[str]:
    pids = vm.run(f"systemctl show --property=MainPID --value {' '.join(units)}").out.split()
    assert "0" not in pids
    return pids


@pytest.fixture(scope="module")
def vm(world: VmWorld) -> Iterator[Vm]:
    machine = world.machine()  # client.sh installs everything, as on a machine of the lab
    machine.power_on()
    machine.settle()
    yield machine
    machine.power_off()


def test_the_registry_serves_images_that_were_made_there(
    world: VmWorld, vm: Vm, tmp_path: Path
) -> None:
    argv = [str(CHECKOUT / "vagrant/pki"), str(tmp_path), f"one={REGISTRY},{CLIENT_V4}"]
    subprocess.run(argv, check=True)
    for name in ("certificate.pem", "key.pem"):
        vm.put(f"/tmp/ramnet-lab/{name}", (tmp_path / "one" / name).read_text(encoding="ascii"))
    settings = {
        "LAB_CERTIFICATE": "/tmp/ramnet-lab/certificate.pem",
        "LAB_KEY": "/tmp/ramnet-lab/key.pem",
        "LAB_IMAGES": "acme/app library/busybox",
        "LAB_ORIGIN": REGISTRY,
    }
    provision(vm, "registry.sh", **settings)
    before = main_pids(vm, "docker-registry")
    provision(vm, "registry.sh", **settings)
    assert main_pids(vm, "docker-registry") == before

    (tmp_path / "ca").mkdir()
    (tmp_path / "ca/ca.crt").write_bytes((tmp_path / "trusted/ca.pem").read_bytes())
    copied = tmp_path / "copied"
    for repository in ("acme/app", "library/busybox"):
        # By address: skopeo asks the resolver of whoever runs it.
        argv = [require("skopeo"), "--insecure-policy", "copy", f"--src-cert-dir={tmp_path / 'ca'}"]
        argv += [f"docker://{CLIENT_V4}/{repository}", f"dir:{copied}"]
        world.lab.world.run(argv)
        layers = json.loads((copied / "manifest.json").read_bytes())["layers"]
        blob = (copied / layers[-1]["digest"].partition(":")[2]).read_bytes()
        with tarfile.open(fileobj=BytesIO(blob)) as layer:
            origin = layer.extractfile("origin")
            assert origin is not None
            assert origin.read().decode() == f"{REGISTRY}\n"


def test_the_resolver_knows_the_names_of_the_lab_and_asks_for_others(
    world: VmWorld, vm: Vm
) -> None:
    here, there = "192.0.2.40", "192.0.2.66"
    settings = {"LAB_LISTEN": CLIENT_V4, "LAB_RECORDS": f"{REGISTRY}={here} {ROGUE}={there}"}
    provision(vm, "dns.sh", **settings)
    before = main_pids(vm, "dnsmasq")
    provision(vm, "dns.sh", **settings)
    assert main_pids(vm, "dnsmasq") == before

    def answers(name: str, kind: str = "A") -> set[str]:
        done = world.lab.world.run([sys.executable, "-c", _ASK, CLIENT_V4, name, kind])
        return set(done.stdout.split())

    assert answers(REGISTRY) == {here}
    assert answers(ROGUE) == {there}
    assert answers("dual.example") == set(DUAL[:1])
    # The real one has an address of the other family, which is not the lab's.
    assert answers(ROGUE, "AAAA") == set()

    moved = {**settings, "LAB_RECORDS": f"{REGISTRY}={there}"}
    provision(vm, "dns.sh", **moved)
    assert answers(REGISTRY) == {there}


def test_the_client_pulls_what_the_policy_of_the_lab_allows(world: VmWorld, vm: Vm) -> None:
    vm.put(CLIENT["LAB_CA"], world.lab.pki.ca.read_text(encoding="ascii"))
    provision(vm, "client.sh", **CLIENT)
    with world.capture() as capture:
        vm.run(f"docker pull {REGISTRY}/acme/app", seconds=120)
        assert capture.to(CORP)
        for registry in (ROGUE, "quay.io", *EVIL[:1]):
            assert vm.run(f"docker pull {registry}/acme/app", check=False).status == 1
        assert vm.run(f"{RAMNET} explain {REGISTRY}/acme/app", check=False).status == 0
        assert vm.run(f"{RAMNET} explain {ROGUE}/acme/app", check=False).status == 1
        assert status(vm)["state"] == "enforcing"
        assert not capture.to(EVIL)
        # A program that is no engine is refused what the catalogue knows, and nothing else.
        assert vm.run("curl --silent https://quay.io/v2/", check=False).status != 0
        vm.run(_CONNECT)
        assert not capture.to(QUAY)
        assert capture.to(EVIL)


def test_the_client_that_is_as_it_should_be_is_left_alone(vm: Vm) -> None:
    before = main_pids(vm, "docker", "containerd", "ramnet")
    provision(vm, "client.sh", **CLIENT)
    assert main_pids(vm, "docker", "containerd", "ramnet") == before


_CONNECT = f"python3 -c 'import socket; socket.create_connection((\"{ROGUE}\", 443), 10)'"

_ASK = """
import sys
from dnslib import QTYPE, DNSRecord
server, name, kind = sys.argv[1:]
answer = DNSRecord.parse(DNSRecord.question(name, kind).send(server, timeout=10))
print(*(record.rdata for record in answer.rr if QTYPE[record.rtype] == kind))
"""
