"""The Vagrant lab: what can be told without Vagrant. tests/vm/test_vagrant.py runs the scripts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from datetime import date
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from ramnet import __version__
from ramnet.core.allow import AllowList, allow_list
from ramnet.core.catalog import load_catalog
from ramnet.core.explain import explain, parse_target
from ramnet.core.names import parse_host
from ramnet.core.policy import parse_policy
from ramnet.lab import image
from tests.conftest import everything_is_required

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "vagrant"
VAGRANTFILE = (LAB / "Vagrantfile").read_text("utf-8")
README = (LAB / "README.md").read_text("utf-8")
PROVISION = LAB / "provision"
ENTRY_POINTS = (
    *(LAB / name for name in ("box", "pki")),
    *(PROVISION / name for name in ("client.sh", "dns.sh", "registry.sh")),
)
SHELL = (*ENTRY_POINTS, PROVISION / "common.sh")

# RFC 5737: never routed anywhere.
DOCUMENTATION = IPv4Network("192.0.2.0/24")
NAME = re.compile(r"\b(?!docker\.io\b)[a-z0-9.-]+\.(?:example|io)\b")  # docker.io: a package
NEEDED = re.compile(r"^(?:if .*; then )?needs [\w-]+ ([a-z0-9.-]+)", re.MULTILINE)
ADDRESS = re.compile(r"\b\d+\.\d+\.\d+\.\d+\b")


def constant(name: str) -> str:
    found = re.search(rf'^{name} = "([^"]*)"$', VAGRANTFILE, re.MULTILINE)
    assert found, f"{name} is not a constant of the Vagrantfile"
    return found[1]


def words(name: str) -> list[str]:
    found = re.search(rf"^{name} = %w\[([^\]]*)\]\.freeze$", VAGRANTFILE, re.MULTILINE)
    assert found, f"{name} is not a list of the Vagrantfile"
    return found[1].split()


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    address: str
    script: str
    share: str | None
    environment: frozenset[str]


def machines() -> list[Row]:
    pattern = (
        r'^  "(?P<name>\w+)" => \[(?P<address>\w+), \d+, "(?P<script>[\w.]+)", '
        r'(?:nil|"(?P<share>\w+)"), \{(?P<body>.*?)^  \}\]'
    )
    return [
        Row(
            found["name"],
            constant(found["address"]),
            found["script"],
            found["share"],
            frozenset(re.findall(r'"(LAB_\w+)" =>', found["body"])),
        )
        for found in re.finditer(pattern, VAGRANTFILE, re.MULTILINE | re.DOTALL)
    ]


def allowed() -> AllowList:
    text = (LAB / "policy.toml").read_text("utf-8")
    policy = parse_policy(text, source="policy.toml", ramnet_version=__version__)
    return allow_list(policy, load_catalog(), date(2026, 1, 1))


# --- the scripts ----------------------------------------------------------------------------


def test_the_scripts_pass_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        if everything_is_required():
            pytest.fail("shellcheck must run here, and is not installed")
        pytest.skip("shellcheck is not installed")
    argv = ["shellcheck", "-x", "-P", str(ROOT), *map(str, SHELL)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_the_scripts_can_be_parsed(script: Path) -> None:
    shell = "bash" if script.name == "box" else "sh"
    subprocess.run([shell, "-n", script], check=True)


@pytest.mark.parametrize("script", ENTRY_POINTS, ids=lambda path: path.name)
def test_an_entry_point_is_executable_and_stops_at_the_first_error(script: Path) -> None:
    first = script.read_text("utf-8").split("\n", 1)[0]
    assert os.access(script, os.X_OK)
    assert first in {"#!/bin/sh", "#!/bin/bash"}
    assert re.search(r"^set -eu(o pipefail)?$", script.read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("script", sorted(PROVISION.iterdir()), ids=lambda path: path.name)
def test_no_name_and_no_address_is_in_a_script(script: Path) -> None:
    text = script.read_text("utf-8")
    assert NAME.findall(text) == []
    assert ADDRESS.findall(text) == []


def shell(script: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script that has read common.sh; programs in ``path`` stand in for the machine's."""
    search = f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]
    return subprocess.run(
        ["/bin/sh", "-eu", "-c", f". {PROVISION}/common.sh\n{script}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": search},
    )


def test_a_file_is_written_once(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "file"
    write = f'changed=; write {file} 600 <<X\ntext\nX\necho "<$changed>"'
    assert shell(f"{write}\n{write}").stdout == "<yes>\n<>\n"
    assert file.read_text("utf-8") == "text\n"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_file_takes_the_place_of_a_link(tmp_path: Path) -> None:
    other, link = tmp_path / "other", tmp_path / "link"
    other.write_text("theirs\n", encoding="utf-8")
    link.symlink_to(other)
    assert shell(f"write {link} <<X\nours\nX").returncode == 0
    assert (other.read_text("utf-8"), link.read_text("utf-8")) == ("theirs\n", "ours\n")


def test_no_text_is_piped_into_what_sets_a_variable() -> None:
    assert [file for file in SHELL if re.search(r"\| write\b", file.read_text("utf-8"))] == []


def test_apt_is_asked_for_what_is_missing_and_for_nothing_else(tmp_path: Path) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\n', encoding="utf-8")
    apt.chmod(0o755)
    nothing = shell("needs sh dash; install_missing", tmp_path)
    assert nothing.returncode == 0
    assert not (tmp_path / "asked").exists()
    something = shell(
        "needs sh dash; needs no-such-program some-package; install_missing", tmp_path
    )
    assert something.returncode == 0
    asked = (tmp_path / "asked").read_text("utf-8").splitlines()
    assert "update" in asked[0]
    assert asked[1].endswith(" install --no-install-recommends some-package")


def test_a_script_without_its_environment_says_what_it_lacks() -> None:
    for row in machines():
        bare = {"PATH": os.environ["PATH"]}
        argv = [PROVISION / row.script]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=bare)
        assert done.returncode != 0
        assert any(name in done.stderr for name in row.environment)


# --- one source of names and addresses ------------------------------------------------------


def test_the_vagrantfile_is_ruby() -> None:
    # Bootstrap installs no Ruby; what the tests below read out of the file they read everywhere.
    if (ruby := shutil.which("ruby")) is not None:
        subprocess.run([ruby, "-c", LAB / "Vagrantfile"], check=True, capture_output=True)
    opened = re.findall(
        r"(?:\bdo\b(?: \|[^\n]*\|)?$|^ *(?:if|unless|case)\b)", VAGRANTFILE, re.MULTILINE
    )
    assert len(opened) == len(re.findall(r"^ *end$", VAGRANTFILE, re.MULTILINE))


def test_the_machines_come_up_in_the_order_in_which_they_need_each_other() -> None:
    assert [row.name for row in machines()] == ["dns", "registry", "rogue", "client"]
    assert 'ENV["VAGRANT_NO_PARALLEL"] = "yes"' in VAGRANTFILE


def test_the_addresses_are_of_one_network_that_leads_nowhere() -> None:
    addresses = [IPv4Address(row.address) for row in machines()]
    assert len(set(addresses)) == len(addresses)
    assert [one for one in addresses if one not in DOCUMENTATION] == []
    assert 'netmask: "255.255.255.0"' in VAGRANTFILE
    assert 'libvirt__forward_mode: "veryisolated"' in VAGRANTFILE
    assert "virtualbox__intnet:" in VAGRANTFILE


@pytest.mark.parametrize("row", machines(), ids=lambda row: row.name)
def test_each_script_is_given_what_it_asks_for(row: Row) -> None:
    script = (PROVISION / row.script).read_text("utf-8")
    assert frozenset(re.findall(r"\$\{(LAB_\w+):\?\}", script)) == row.environment
    documented = script.partition("# Environment:")[2].partition("set -eu")[0]
    assert frozenset(re.findall(r"LAB_\w+", documented)) == row.environment
    assert frozenset(re.findall(r"\bLAB_\w+", script)) == row.environment


def test_the_readme_tells_each_machine_with_its_address() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", README, re.MULTILINE))
    assert table == {row.name: row.address for row in machines()}


def test_the_readme_names_nothing_that_the_lab_does_not_have() -> None:
    known = {*words("REGISTRY_NAMES"), *words("ROGUE_NAMES")}
    assert set(NAME.findall(README)) == known
    assert set(ADDRESS.findall(README)) == {row.address for row in machines()}
    pulled = set(re.findall(r"docker pull [^/\s]+/(\S+)", README))
    assert pulled
    assert pulled <= set(words("IMAGES"))


def test_the_readme_tells_every_setting() -> None:
    told = set(re.findall(r"`(RAMNET_LAB_\w+)[=`]", README))
    assert told == set(re.findall(r'ENV\.fetch\("(RAMNET_\w+)"', VAGRANTFILE))
    found = re.search(r'^BOX = .*, "([^"]+)"\)$', VAGRANTFILE, re.MULTILINE)
    assert found
    assert f"the default is `{found[1]}`" in README


def test_the_policy_allows_the_one_registry_and_not_the_other() -> None:
    policy = tomllib.loads((LAB / "policy.toml").read_text("utf-8"))
    assert [one["address"] for one in policy["registry"]] == words("REGISTRY_NAMES")
    lists = allowed()

    def verdict(name: str) -> bool:
        return explain(parse_target(f"{name}/acme/app"), lists, None, 0.0).allowed

    assert [verdict(name) for name in words("REGISTRY_NAMES")] == [True]
    assert [verdict(name) for name in words("ROGUE_NAMES")] == [False, False]


def test_the_rogue_registry_has_a_name_that_is_known_and_one_that_is_not() -> None:
    catalog = load_catalog()
    known = [catalog.registry_of(parse_host(name)) is not None for name in words("ROGUE_NAMES")]
    assert known == [False, True]


def test_no_key_leaves_this_machine_but_to_its_holder() -> None:
    keys = constant("KEYS")
    assert f"/{keys}/" in (LAB / ".gitignore").read_text("utf-8").splitlines()
    assert '"vagrant/#{KEYS}/"' in VAGRANTFILE
    assert [row.share for row in machines()] == [None, "registry", "rogue", "trusted"]


# --- certificates ---------------------------------------------------------------------------


def pki(folder: Path, *holders: str) -> None:
    subprocess.run([LAB / "pki", folder, *holders], check=True, capture_output=True)


def certificate(file: Path) -> str:
    argv = ["openssl", "x509", "-noout", "-text", "-in", str(file)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def verifies(folder: Path, holder: str, name: str) -> bool:
    kind = "-verify_ip" if ADDRESS.fullmatch(name) else "-verify_hostname"
    argv = ["openssl", "verify", "-CAfile", str(folder / "trusted/ca.pem"), kind, name]
    argv.append(str(folder / holder / "certificate.pem"))
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def test_certificates_are_made_once_and_again_when_their_names_change(tmp_path: Path) -> None:
    pki(tmp_path, "good=a.example,192.0.2.1", "bad=b.example")
    assert verifies(tmp_path, "good", "a.example")
    assert verifies(tmp_path, "good", "192.0.2.1")
    assert verifies(tmp_path, "bad", "b.example")
    assert not verifies(tmp_path, "bad", "a.example")
    good, bad = (tmp_path / name / "certificate.pem" for name in ("good", "bad"))
    before = good.read_bytes(), bad.read_bytes()
    pki(tmp_path, "good=a.example,192.0.2.1", "bad=c.example")
    assert good.read_bytes() == before[0]
    assert bad.read_bytes() != before[1]
    assert verifies(tmp_path, "bad", "c.example")


def test_another_authority_signs_everything_anew(tmp_path: Path) -> None:
    pki(tmp_path, "good=a.example")
    (tmp_path / "authority/ca.key").unlink()
    pki(tmp_path, "good=a.example")
    assert verifies(tmp_path, "good", "a.example")


def test_an_authority_signs_servers_and_a_server_signs_nothing(tmp_path: Path) -> None:
    pki(tmp_path, "good=a.example")
    assert "CA:TRUE" in certificate(tmp_path / "trusted/ca.pem")
    assert "CA:FALSE" in certificate(tmp_path / "good/certificate.pem")
    assert sorted(path.name for path in (tmp_path / "trusted").iterdir()) == ["ca.pem"]
    assert [path for path in tmp_path.rglob("*.key") if path.stat().st_mode & 0o077] == []


# --- images and the box ---------------------------------------------------------------------


def test_the_images_are_made_by_a_python_without_packages(tmp_path: Path) -> None:
    busybox = shutil.which("busybox") or sys.executable  # any file will do
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "busybox").symlink_to(busybox)
    subprocess.run(
        [sys.executable, "-S", "-B", PROVISION / "images.py", tmp_path, "here", "acme/app", "b"],
        check=True,
        env={"PYTHONPATH": str(ROOT), "RAMNET_LAB_PATH": str(programs)},
    )
    for repository in ("acme/app", "b"):
        home = tmp_path / f"docker/registry/v2/repositories/{repository}/_manifests"
        digest = (home / "tags/latest/current/link").read_text("ascii").partition(":")[2]
        blob = tmp_path / f"docker/registry/v2/blobs/sha256/{digest[:2]}/{digest}/data"
        assert image.digest(blob.read_bytes()) == f"sha256:{digest}"


def test_the_box_has_what_the_scripts_would_install() -> None:
    box = (LAB / "box").read_text("utf-8")
    listed = box.partition("packages=(")[2].partition("\n)")[0]
    packages = {*re.sub("#.*", "", listed).split(), "docker-cli"}
    assert "include+=,docker-cli" in box
    wanted = {
        package
        for script in PROVISION.glob("*.sh")
        for package in NEEDED.findall(script.read_text("utf-8"))
    }
    assert {"docker.io", "docker-registry"} <= wanted
    assert wanted | {"dnsmasq", "openssh-server", "rsync", "sudo"} <= packages


@pytest.mark.parametrize("arguments", [[], ["--help"], ["a.box", "b.box"]])
def test_the_box_is_made_only_when_told_where(arguments: list[str]) -> None:
    done = subprocess.run([LAB / "box", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "hint: sudo vagrant/box OUTPUT.box" in done.stderr
