"""Any bytes in the files of container engines give facts and findings, and never give away more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramnet.core.clientfiles import docker_config, dockerfile
from ramnet.core.config import Config
from ramnet.core.enginefacts import endpoint, printable
from ramnet.core.enginefiles import (
    daemon_json,
    default_docker,
    dockerd_flags,
    environment_file,
    process_environment,
    proxies_of,
    unit_text,
)
from ramnet.core.enginemirrors import (
    buildkitd_toml,
    containerd_config,
    hosts_toml,
    registries_conf,
)
from ramnet.host.engineconf import engine_findings

KEYS = ["proxies", "http-proxy", "https-proxy", "no-proxy", "registry-mirrors", "hosts", "dns"]
KEYS += ["insecure-registries", "userland-proxy", "userland-proxy-path", "features"]
KEYS += ["auths", "credHelpers", "syntax", "unqualified-search-registries"]
KEYS += ["containerd-snapshotter", "registry", "mirrors", "endpoint", "server", "host", "plugins"]

FILES = ["etc/docker/daemon.json", "etc/default/docker", "etc/containerd/config.toml"]
FILES += ["etc/containerd/certs.d/quay.io/hosts.toml", "etc/containers/registries.conf"]
FILES += ["etc/systemd/system/docker.service", "run/systemd/system/podman.service.d/a.conf"]

# Lines of the kind that these files are made of, so that random text gets past the first character.
FRAGMENTS = st.sampled_from(
    [
        b"[Service]\n",
        b"Environment=",
        b"EnvironmentFile=/",
        b"ExecStart=",
        b"HTTP_PROXY=",
        b"'",
        b'"',
        b"\\\n",
        b"\0",
        b"\n",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b"=",
        b"@",
        b"/",
        b"http://",
        b"\xff",
        b"[[registry]]\n",
        b"location",
        b"mirror",
        b"--registry-mirror",
        b" -H",
        b"#",
        b"127.0.0.1",
    ]
)
ROUGH = st.binary(max_size=300) | st.lists(FRAGMENTS, max_size=40).map(b"".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), inner, max_size=6)
    ),
    max_leaves=20,
)


PARSERS: list[Callable[[bytes], object]] = [
    lambda data: list(daemon_json(data, "f")),
    lambda data: list(default_docker(data, "f")),
    lambda data: environment_file(data, "f"),
    lambda data: list(proxies_of(process_environment(data), "f")),
    lambda data: unit_text([("f", data), ("g", data)]),
    lambda data: containerd_config(data, "f"),
    lambda data: list(hosts_toml("docker.io", data, "f")),
    lambda data: list(registries_conf(data, "f")),
    lambda data: list(buildkitd_toml(data, "f")),
    lambda data: list(docker_config(data, "f")),
    lambda data: list(dockerfile(data, "f")),
]


@pytest.mark.parametrize("parse", PARSERS)
@given(data=ROUGH)
def test_any_bytes_give_facts(parse: Callable[[bytes], object], data: bytes) -> None:
    parse(data)


@given(VALUES)
def test_any_json_gives_facts(value: object) -> None:
    list(daemon_json(json.dumps(value).encode(), "f"))


@given(st.lists(st.text()))
def test_any_arguments_give_facts(words: list[str]) -> None:
    dockerd_flags(words, "f")


@given(st.fixed_dictionaries(dict.fromkeys(FILES, ROUGH)))
def test_any_files_give_findings(texts: dict[str, bytes]) -> None:
    with TemporaryDirectory() as folder:
        for name, data in texts.items():
            file = Path(folder, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        for found in engine_findings(Config(), None, root=Path(folder)):
            assert found.text
            assert found.hint
            assert f"{found} {found.hint}".isprintable()


@given(st.text(), st.text(min_size=1), st.text(alphabet="abcdefgh:/?#@", max_size=10))
def test_the_user_and_the_password_of_a_url_are_never_kept(
    user: str, password: str, rest: str
) -> None:
    secret = f"<{password}>"  # none of a host name
    found = endpoint(f"http://{user}:{secret}{rest}@proxy.example:3128", "http")
    assert secret not in repr(found)
    assert secret not in str(found)


@given(st.text())
def test_any_url_leads_somewhere_or_nowhere(text: str) -> None:
    assert str(endpoint(text, "http")).isprintable()
    assert printable(text).isprintable()
