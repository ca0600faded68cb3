"""The Debian package: what is in it, and its way from installation to purge.

Its scripts are first run in the unpacked image, which is quick; then one machine goes through all
of it in the order of this file. The first test of that machine is the control.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ramnet import __version__
from ramnet.lab.world import EVIL
from tests.vm.image import Image
from tests.vm.kernels import CHECKOUT
from tests.vm.packaging import NEWER, OUT, Userland
from tests.vm.vm import Vm
from tests.vm.world import VmWorld

pytestmark = pytest.mark.timeout(600)

ALLOWED = "docker.io/library/busybox"  # by the policy that a new machine gets
REFUSED = "evil.example/acme/app"
EMULATED_SECONDS = 120.0

# Connects to a refused address all the time, as an engine.
_STREAM = f"""\
import socket, time
while True:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.connect_ex(({EVIL[0]!r}, 443))
    time.sleep(0.05)
    sock.close()
"""
START_STREAM = (
    "systemd-run --quiet --unit=stream --slice=ramnetengines.slice python3 -I -S /root/stream.py"
)
SLICE = "/sys/fs/cgroup/ramnetengines.slice"
FILES_BEFORE = "/var/log/files-before"
# Everything but what any installation of a package changes.
_FILES = (
    (
        "find / -xdev ( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp"
        f" -o -path /{OUT} -o -path /mnt -o -path /var/lib/dpkg -o -path /var/log"
        " -o -path /var/cache -o -path /var/lib/systemd -o -path /var/lib/docker"
        " -o -path /var/lib/containerd )"
        " -prune -o -print"
    )
    .replace("( ", r"\( ")
    .replace(" )", r" \)")
)


@dataclass(frozen=True, slots=True)
class Packages:
    """This version, one that follows, and one that follows but cannot be unpacked or set up."""

    this: Path
    newer: Path
    unpackable: Path
    unfinished: Path


@pytest.fixture(scope="session")
def userland(
    image: Image, code_disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Userland]:
    folder = tmp_path_factory.mktemp("package")
    yield Userland.of(image, code_disk, folder / "root")
    shutil.rmtree(folder)  # most of a gigabyte


@pytest.fixture(scope="session")
def packages(userland: Userland) -> Packages:
    this = userland.build()
    return Packages(
        this,
        userland.build_newer(),
        userland.altered(this, "unpackable", preinst="exit 1"),
        userland.altered(this, "unfinished", postinst="exit 1"),
    )


def inside(package: Path) -> str:
    """Where the userland sees a package."""
    return f"/{OUT}/{package.name}"


# --- what is in it --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def content(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("content")
    subprocess.run(["dpkg-deb", "--raw-extract", packages.this, folder], check=True)
    return folder


def test_its_name_and_what_it_needs(packages: Packages, image: Image) -> None:
    assert packages.this.name.startswith(f"ramnet_{__version__}_")
    fields = subprocess.run(
        ["dpkg-deb", "--field", packages.this, "Version", "Depends"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert f"Version: {__version__}\n" in fields
    assert f"Depends: python{image.python}, " in fields


def test_no_file_names_the_machine_that_built_it(content: Path, userland: Userland) -> None:
    release = content / "usr/lib/ramnet/release"
    for path in (userland.root, CHECKOUT, "/mnt/code", "/var/cache/ramnet-bootstrap"):
        found = subprocess.run(
            ["grep", "-rlF", str(path), release], check=False, capture_output=True, text=True
        )
        # A program of the lab says where its cache is.
        hits = [hit for hit in found.stdout.splitlines() if "/ramnet/lab/" not in hit]
        assert (found.returncode > 1, hits) == (False, [])
    assert list(release.rglob("direct_url.json")) == []
    programs = {path.name for path in (release / "venv/bin").iterdir()}
    assert programs == {"python", "python3", "ramnet"}


def test_every_module_is_compiled_for_good(content: Path) -> None:
    site = next((content / "usr/lib/ramnet/release/venv/lib").glob("python3.*/site-packages"))
    sources, compiled = list(site.rglob("*.py")), list(site.rglob("*.pyc"))
    assert len(sources) == len(compiled) > 500
    # PEP 552: by a hash that nobody looks at, so no time of a file matters.
    assert {file.read_bytes()[4:8] for file in compiled} == {b"\x01\0\0\0"}
    assert b"/opt/ramnet/current/venv/lib/" in compiled[0].read_bytes()


def test_it_brings_nothing_that_a_person_edits(content: Path) -> None:
    assert {path.name for path in content.iterdir()} == {"DEBIAN", "usr"}
    assert not (content / "DEBIAN/conffiles").exists()


def test_the_same_sources_give_the_same_bytes(packages: Packages, userland: Userland) -> None:
    """From another folder, and at another time."""
    userland.run("mkdir -p /home/somebody && cp -a /mnt/code /home/somebody/ramnet")
    again = userland.build("home/somebody/ramnet", out="tmp/again")
    assert again.read_bytes() == packages.this.read_bytes()


# --- its scripts, without systemd -----------------------------------------------------------


def test_in_a_chroot(packages: Packages, userland: Userland) -> None:
    """Such as when an image of a machine is made: nothing is started, nothing fails."""
    before = userland.run(_FILES).out.splitlines()
    install, state = f"dpkg -i {inside(packages.this)}", "dpkg-query -Wf '${Status}' ramnet"

    def run(script: str, *, check: bool = True) -> str:
        done = userland.run(script, chroot=True, check=check)
        return done.out + done.err

    run(install)
    assert run("ramnet version").strip() == f"ramnet {__version__}"
    assert "valid" in run("ramnet policy validate")
    enabled = "/etc/systemd/system/multi-user.target.wants/"
    run(f"test -L {enabled}/ramnet.service && test -L {enabled}/ramnet-lock.service")
    run("readlink -e /usr/local/libexec/docker/docker-proxy")

    # What a person wrote stays, and a damaged release is put right by the same package.
    run("echo '# mine' >>/etc/ramnet/policy.toml; echo x >>/opt/ramnet/current/venv/pyvenv.cfg")
    run(install)
    assert "# mine" in run("cat /etc/ramnet/policy.toml")
    run("diff -r /usr/lib/ramnet/release /opt/ramnet/current/")
    assert len(run("ls /opt/ramnet/releases").split()) == 1

    # An upgrade that fails leaves what was there.
    assert "exit status 1" in run(f"dpkg -i {inside(packages.unpackable)}", check=False)
    assert run(state) == "install ok installed"
    assert "exit status 1" in run(f"dpkg -i {inside(packages.unfinished)}", check=False)
    assert run(state) == "install ok half-configured"
    assert run("ramnet version").strip() == f"ramnet {__version__}"
    run(f"dpkg -i {inside(packages.newer)}")
    assert run("ramnet version").strip() == f"ramnet {NEWER}"

    run("dpkg -r ramnet")
    assert run("ls /etc/ramnet").split() == ["policy.toml"]
    run("dpkg -P ramnet")
    assert sorted(userland.run(_FILES).out.splitlines()) == sorted(before)


def test_beside_an_installation_from_the_checkout_it_refuses(
    packages: Packages, userland: Userland
) -> None:
    link = "/usr/local/bin/ramnet"
    userland.run(f"ln -s /opt/ramnet/current/venv/bin/ramnet {link}")
    done = userland.run(f"dpkg -i {inside(packages.this)}; rm {link}; dpkg -P ramnet", check=False)
    assert f"installed already, by 'bootstrap install' ({link})" in done.err
    assert "hint: " in done.err
    assert "Unpacking" not in done.out


def test_rules_that_stay_are_told(packages: Packages, userland: Userland) -> None:
    done = userland.run(
        f"dpkg -i {inside(packages.this)} >/dev/null 2>&1; nft add table inet ramnet;"
        " ln -sf /bin/false /opt/ramnet/current/venv/bin/python3; dpkg -P ramnet; nft list tables"
    )
    assert "rules are still in force" in done.err
    assert "hint: nft delete table inet ramnet" in done.err
    assert "table inet ramnet" in done.out


# --- on a machine ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machines(image: Image, packages: Packages, userland: Userland) -> Iterator[VmWorld]:
    assert packages.newer.parent == userland.root / OUT
    with VmWorld(image, userland.disk(userland.root.parent / "packages.img")) as made:
        yield made


@pytest.fixture(scope="module")
def vm(machines: VmWorld) -> Vm:
    made = machines.machine()
    made.power_on()
    machines.trust(made)
    made.put("/root/stream.py", _STREAM)
    made.settle()
    made.run("systemctl restart docker", seconds=EMULATED_SECONDS)
    return made


def on_disk(package: Path) -> str:
    """Where the machine sees a package."""
    return f"/mnt/code/{package.name}"


def pulls(vm: Vm, image: str) -> bool:
    """Tell whether the engine gets an image."""
    return vm.run(f"docker pull --quiet {image}", check=False).status == 0


def state(vm: Vm) -> str:
    """Everything that an upgrade must leave alone."""
    return vm.run(
        "docker inspect -f '{{.Id}} {{.State.StartedAt}}' busy;"
        "systemctl show -p MainPID -p ExecMainStartTimestamp docker containerd stream"
    ).out


def daemon(vm: Vm) -> str:
    return vm.run("systemctl show -p MainPID --value ramnet").out.strip()


def wait_state(vm: Vm, state: str) -> None:
    said = f"""ramnet status --json | grep -q '"state": "{state}"'"""
    vm.wait_for(said, seconds=EMULATED_SECONDS)


@pytest.mark.thorough("6.1")
def test_without_it_everything_gets_through(vm: Vm, machines: VmWorld) -> None:
    with machines.capture() as capture:
        vm.run(f"{START_STREAM} && sleep 1 && systemctl stop stream")
        assert capture.to(EVIL)
        assert pulls(vm, REFUSED)


@pytest.mark.thorough("6.1")
def test_installation(vm: Vm, machines: VmWorld, packages: Packages) -> None:
    vm.run(
        f"docker pull --quiet {ALLOWED} && docker run --detach --name busy --restart always"
        f" --network none --security-opt apparmor=unconfined {ALLOWED} sleep 1000000",
        seconds=EMULATED_SECONDS,
    )
    vm.run(f"{_FILES} | sort >{FILES_BEFORE}")
    engine = vm.run("systemctl show -p MainPID docker containerd").out
    done = vm.run(f"dpkg -i {on_disk(packages.this)}", seconds=EMULATED_SECONDS)
    # Containers run on; that engines are judged from their next start is said.
    assert vm.run("systemctl show -p MainPID docker containerd").out == engine
    assert "NOT judged as an engine until it is restarted: " in done.err
    assert "docker.service" in done.err
    vm.run("systemctl restart containerd docker", seconds=EMULATED_SECONDS)
    # The policy of a new machine only records what it would refuse.
    wait_state(vm, "auditing")
    assert pulls(vm, REFUSED)
    vm.run(f'docker rmi {REFUSED} && sed -i \'s/"audit"/"enforce"/\' /etc/ramnet/policy.toml')
    wait_state(vm, "enforcing")
    with machines.capture() as capture:
        assert not pulls(vm, REFUSED)
        assert pulls(vm, ALLOWED)
        assert capture.to(EVIL) == ()


@pytest.mark.thorough("6.1")
def test_a_boot(vm: Vm, machines: VmWorld) -> None:
    with machines.capture() as capture:
        vm.reboot()
        vm.settle()
        wait_state(vm, "enforcing")
        assert not pulls(vm, REFUSED)
        assert pulls(vm, ALLOWED)
        assert capture.to(EVIL) == ()
    assert vm.run("systemctl --failed --no-legend").out == ""


@pytest.mark.thorough("6.1")
def test_an_upgrade_under_load(vm: Vm, machines: VmWorld, packages: Packages) -> None:
    vm.run(START_STREAM)
    before, pid = state(vm), daemon(vm)
    release = vm.run("readlink /opt/ramnet/current").out
    with machines.capture() as capture:
        vm.run(f"dpkg -i {on_disk(packages.newer)}", seconds=EMULATED_SECONDS)
        wait_state(vm, "enforcing")
        assert vm.run("ramnet version").out.strip() == f"ramnet {NEWER}"
        assert daemon(vm) not in {pid, "0"}
        assert state(vm) == before
        assert not pulls(vm, REFUSED)
        assert pulls(vm, ALLOWED)
        # One that fails half way stops nothing.
        pid = daemon(vm)
        assert vm.run(f"dpkg -i {on_disk(packages.unpackable)}", check=False).status == 1
        assert daemon(vm) == pid
        assert state(vm) == before
        wait_state(vm, "enforcing")
        vm.run("sleep 1")
        assert capture.to(EVIL) == ()
    assert vm.run("ls /opt/ramnet/releases").out.split() == [
        vm.run("basename $(readlink /opt/ramnet/current)").out.strip()
    ]
    assert vm.run("readlink /opt/ramnet/current").out != release


@pytest.mark.thorough("6.1")
def test_removal_and_purge(vm: Vm, machines: VmWorld) -> None:
    before = state(vm)
    done = vm.run("dpkg -r ramnet", seconds=EMULATED_SECONDS)
    assert "rules were removed" in done.out
    assert "in force" not in done.err
    assert state(vm) == before
    tables = vm.run("nft list tables").out
    assert "ramnet" not in tables
    with machines.capture() as capture:
        assert pulls(vm, REFUSED)
        assert capture.to(EVIL)
    assert vm.run("ls /etc/ramnet").out.split() == ["policy.toml"]
    # Engines keep their place as long as a container runs; then the slice can go.
    vm.run(
        "systemctl stop stream; docker rm -f busy; systemctl stop docker.socket docker containerd;"
        " systemctl start containerd docker",
        seconds=EMULATED_SECONDS,
    )
    vm.wait_for(f"grep -q '^populated 0' {SLICE}/cgroup.events", seconds=EMULATED_SECONDS)
    vm.run("dpkg -P ramnet")
    assert vm.run(f"{_FILES} | sort | diff {FILES_BEFORE} -", check=False).out == ""
    units = vm.run("systemctl list-units --all --no-legend 'ramnet*'").out.splitlines()
    assert [unit for unit in units if "ramnet-vm-agent" not in unit] == []
    vm.run(f"test ! -e {SLICE}")
