"""What the files of container engines say: Docker, systemd, environments, containerd, Podman."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from ramnet.core.enginefacts import (
    Api,
    ContainerDns,
    Endpoint,
    Fact,
    Insecure,
    Mirror,
    Named,
    Proxy,
    Snapshotter,
    Unreadable,
    Userland,
    endpoint,
    printable,
)
from ramnet.core.enginefiles import (
    config_file,
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
from ramnet.core.enginetables import MAX_ITEMS

SECRET = "hunter2"


def brief(facts: Iterable[Fact]) -> list[str]:
    """Write each fact in one line, without its source."""
    lines = []
    for fact in facts:
        match fact:
            case Proxy(where, key, _, direct):
                lines.append(f"proxy {key} {where}{' direct' if direct else ''}")
            case Mirror(registry, where, _):
                lines.append(f"mirror {registry} {where}")
            case Named(where, why, _):
                lines.append(f"named {where} {why}")
            case Insecure(where, _):
                lines.append(f"insecure {where}")
            case Api(address, _):
                lines.append(f"api {address}")
            case ContainerDns(servers, _):
                lines.append(f"dns {' '.join(servers)}")
            case Userland(enabled, path, _):
                lines.append(f"userland {enabled} {path}")
            case Snapshotter():
                lines.append("snapshotter")
            case Unreadable(_, why):
                lines.append(f"unreadable: {why}")
            case _:
                lines.append(repr(fact))
    return lines


# --- where a URL leads


@pytest.mark.parametrize(
    ("url", "leads"),
    [
        ("http://proxy.corp.example:3128", "proxy.corp.example:3128"),
        ("http://proxy.corp.example:3128/path?query#fragment", "proxy.corp.example:3128"),
        ("proxy.corp.example:3128", "proxy.corp.example:3128"),
        ("http://proxy.corp.example", "proxy.corp.example:80"),
        ("https://proxy.corp.example", "proxy.corp.example:443"),
        ("HTTPS://Proxy.Corp.Example", "proxy.corp.example:443"),
        ("socks5://10.0.0.1", "10.0.0.1:1080"),
        ("http://[2001:db8::1]:8080", "[2001:db8::1]:8080"),
        ("http://[2001:db8::1]", "[2001:db8::1]:80"),
        ("  http://127.0.0.1:3128  # by cron", "127.0.0.1:3128"),
        (f"http://user:{SECRET}@proxy.example:3128", "proxy.example:3128"),
        (f"user:{SECRET}@proxy.example:3128", "proxy.example:3128"),
        # Not escaped, as people write them.
        (f"http://user:12/{SECRET}@proxy.example:3128", "proxy.example:3128"),
        (f"http://user:12@3@{SECRET}@proxy.example:3128", "proxy.example:3128"),
        (f"http://user:12?{SECRET}#@proxy.example:3128/", "proxy.example:3128"),
    ],
)
def test_where_a_url_leads(url: str, leads: str) -> None:
    found = endpoint(url, "http")
    assert str(found) == leads
    assert SECRET not in repr(found)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://",
        ":8080",
        f"user:{SECRET}",
        "http://*.example:80",
        "http://a.example:*",
        "a_$",
        "http://a..b",
        "http://a:99999",
        "x" * 100_000,
        "\ud800",
        "http://\0",
        "http://[::1",
    ],
)
def test_a_url_without_a_host_leads_nowhere_and_is_not_repeated(url: str) -> None:
    found = endpoint(url, "http")
    assert found.address is None
    assert str(found) == "(an address that cannot be read)"
    assert not found.loopback


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("localhost:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("10.0.0.1:1", False),
        ("localhost.example:1", False),
    ],
)
def test_loopback_is_recognised(url: str, *, loopback: bool) -> None:
    assert endpoint(url, "http").loopback is loopback


def test_foreign_text_is_made_fit_for_a_line() -> None:
    assert printable("a\x1b[31m\nb\u202e\udc80") == "a?[31m?b??"
    assert printable("x" * 1000) == "x" * 200 + "..."


# --- Docker

DAEMON = """{
  "proxies": {"http-proxy": "http://user:hunter2@proxy.example:3128",
              "https-proxy": "http://proxy.example:3129", "no-proxy": "localhost"},
  "registry-mirrors": ["https://mirror.example", "http://10.0.0.7:5000/"],
  "insecure-registries": ["old.example:5000", "10.1.0.0/16", "10.1.2.3/24"],
  "hosts": ["unix:///run/docker.sock", "fd://", "tcp://0.0.0.0:2375", ":2376"],
  "dns": ["9.9.9.9", "2620:fe::fe"],
  "userland-proxy": true, "userland-proxy-path": "/opt/ramnet-docker-proxy",
  "features": {"containerd-snapshotter": true, "buildkit": true},
  "log-driver": "json-file"
}"""
SAID = [
    "proxy http-proxy proxy.example:3128 direct",
    "proxy https-proxy proxy.example:3129 direct",
    "mirror docker.io mirror.example:443",
    "mirror docker.io 10.0.0.7:5000",
    "insecure old.example:5000",
    "insecure 10.1.0.0/16",
    "insecure 10.1.2.0/24",
    "api tcp://0.0.0.0:2375",
    "api :2376",
    "dns 9.9.9.9 2620:fe::fe",
    "userland True /opt/ramnet-docker-proxy",
    "snapshotter",
]


def test_what_a_daemon_json_says() -> None:
    facts = tuple(daemon_json(DAEMON.encode(), "/etc/docker/daemon.json"))
    assert brief(facts) == SAID
    assert SECRET not in repr(facts)
    assert {getattr(fact, "source", "") for fact in facts} == {"/etc/docker/daemon.json"}


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "\ufeff{}",
        '{"hosts": [], "dns": []}',
        '{"features": {"containerd-snapshotter": false}}',
        '{"proxies": {}}',
        '{"registry-mirrors": null, "proxies": null}',
    ],
)
def test_a_daemon_json_that_says_nothing(text: str) -> None:
    assert brief(daemon_json(text.encode(), "f")) == []


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it is not valid JSON (line 1)"),
        (b'{"proxies":\n {"http-proxy": "hunter2"\n', "it is not valid JSON (line 3)"),
        (b"\xff\xfe{}", "it is not valid JSON"),
        (b"[" * 100_000, "it is not valid JSON"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "it is not valid JSON"),
        (b"[]", "it holds a list, not a table"),
        (b"7", "it holds a number, not a table"),
        (b'{"proxies": "hunter2"}', "proxies is a string, not a table"),
        (b'{"proxies": {"http-proxy": ["hunter2"]}}', "http-proxy is a list, not a string"),
        (b'{"registry-mirrors": "hunter2"}', "registry-mirrors is a string, not a list"),
        (b'{"hosts": [7]}', "hosts holds something that is no string, or empty"),
        (b'{"dns": [""]}', "dns holds something that is no string, or empty"),
        (b'{"userland-proxy": "false"}', "userland-proxy is a string, not true or false"),
        (b'{"userland-proxy-path": true}', "userland-proxy-path is a boolean, not a string"),
    ],
)
def test_what_is_wrong_with_a_daemon_json_is_told_and_not_repeated(data: bytes, why: str) -> None:
    facts = tuple(daemon_json(data, "/etc/docker/daemon.json"))
    assert facts == (Unreadable("/etc/docker/daemon.json", why),)
    assert SECRET not in repr(facts)


def test_a_long_list_is_read_to_its_limit() -> None:
    mirrors = ", ".join(f'"https://m{n}.example"' for n in range(MAX_ITEMS + 1))
    facts = tuple(daemon_json(f'{{"registry-mirrors": [{mirrors}]}}'.encode(), "f"))
    assert len([fact for fact in facts if isinstance(fact, Mirror)]) == MAX_ITEMS
    assert (
        brief(facts)[-1]
        == f"unreadable: of registry-mirrors only the first {MAX_ITEMS} items are read"
    )


def test_what_the_arguments_of_dockerd_say() -> None:
    words = ["/usr/bin/dockerd", "--http-proxy", "http://user:hunter2@proxy.example:3128"]
    words += ["--https-proxy=http://proxy.example:3129", "--no-proxy=localhost"]
    words += [
        "--registry-mirror=https://mirror.example",
        "--registry-mirror",
        "http://10.0.0.7:5000",
    ]
    words += ["--insecure-registry=old.example:5000", "--insecure-registry", "10.1.0.0/16"]
    words += ["--insecure-registry=10.1.2.3/24", "-D", "-l", "info", "--data-root", "/x"]
    words += [
        "-H",
        "unix:///run/docker.sock",
        "-Hfd://",
        "-H=tcp://0.0.0.0:2375",
        "--host",
        ":2376",
    ]
    words += ["--dns", "9.9.9.9", "--dns=2620:fe::fe", "--userland-proxy"]
    words += ["--userland-proxy-path=/opt/ramnet-docker-proxy"]
    facts = dockerd_flags(words, "dockerd (pid 1)")
    assert brief(facts) == SAID[:-1]
    assert SECRET not in repr(facts)


@pytest.mark.parametrize(
    ("word", "enabled"),
    [
        ("--userland-proxy=false", False),
        ("--userland-proxy=0", False),
        ("--userland-proxy=F", False),
        ("--userland-proxy=true", True),
        ("--userland-proxy=1", True),
    ],
)
def test_the_switch_of_docker_proxy(word: str, *, enabled: bool) -> None:
    assert dockerd_flags([word], "f") == (Userland(enabled, None, "f"),)


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["dockerd", "--config-file", "/etc/d.json"], "/etc/d.json"),
        (["dockerd", "--config-file=/etc/d.json", "-D"], "/etc/d.json"),
        (["dockerd", "--config-file"], ""),
        (["dockerd"], ""),
        ([], ""),
    ],
)
def test_which_daemon_json_the_arguments_name(words: list[str], path: str) -> None:
    assert config_file(words) == path


# --- environments


def test_the_proxies_of_an_environment() -> None:
    environment = {
        "HTTP_PROXY": "http://user:hunter2@a.example:1",
        "https_proxy": "b.example:2",
        "ALL_PROXY": "socks5://c.example",
        "no_proxy": "localhost",
        "HTTPS_PROXY": "",
        "PATH": "/bin",
    }
    facts = tuple(proxies_of(environment, "f"))
    assert sorted(brief(facts)) == [
        "proxy ALL_PROXY c.example:1080 direct",
        "proxy HTTP_PROXY a.example:1 direct",
        "proxy https_proxy b.example:2 direct",
    ]
    assert SECRET not in repr(facts)
    assert [fact.direct for fact in proxies_of({"http_proxy": "a:1"}, "f")] == [False]


def test_of_the_environment_of_a_process_only_proxies_are_kept() -> None:
    data = b"PATH=/bin\0HTTP_PROXY=http://a.example:1\0TOKEN=hunter2\0http_proxy=\xff\xfe\0broken\0=x\0"
    found = process_environment(data + b"HTTP_PROXY=http://second.example\0no_proxy=a=b")
    assert found == {"HTTP_PROXY": "http://a.example:1", "http_proxy": "��", "no_proxy": "a=b"}
    assert process_environment(b"") == {}


def test_an_environment_file() -> None:
    data = b"""\
# HTTP_PROXY=http://commented.example
; HTTP_PROXY=http://commented.example
export HTTP_PROXY="http://user:hunter2@a.example:1"
HTTPS_PROXY = 'http://b.example:2'
NO_PROXY=a.example,\\
b.example
TOKEN=hunter2 ' open
HTTP_PROXY=http://last.example:1
DOCKER_OPTS="--dns 9.9.9.9 --registry-mirror=https://mirror.example"
"""
    found, faults = environment_file(data, "f")
    assert found == {
        "HTTP_PROXY": "http://last.example:1",
        "HTTPS_PROXY": "http://b.example:2",
        "NO_PROXY": "a.example, b.example",
        "DOCKER_OPTS": "--dns 9.9.9.9 --registry-mirror=https://mirror.example",
    }
    assert faults == ()
    assert environment_file(b"HTTP_PROXY='hunter2", "f") == (
        {},
        (Unreadable("f", "the quotes of HTTP_PROXY do not close"),),
    )


def test_etc_default_docker() -> None:
    data = b'export http_proxy="http://a.example:1/"\n'
    data += b"DOCKER_OPTS='-H tcp://0.0.0.0:2375 --dns 9.9.9.9'\n"
    assert brief(default_docker(data, "f")) == [
        "proxy http_proxy a.example:1",
        "api tcp://0.0.0.0:2375",
        "dns 9.9.9.9",
    ]


# --- units of systemd


def test_a_unit_with_drop_ins() -> None:
    unit = b"""\
[Unit]
Environment=HTTP_PROXY=http://wrong.section WRONG=1
[Service]
Environment="HTTP_PROXY=http://user:hunter2@a.example:1" 'NO_PROXY=x y' PLAIN=1
# a comment
Environment=HTTPS_PROXY=http://b.example:2 \\
; COMMENT=1
  ALL_PROXY=socks5://c.example
EnvironmentFile=-/etc/default/docker
EnvironmentFile=/etc/sysconfig/docker*
Slice=a.slice
ExecStart=/usr/bin/dockerd -H fd:// --dns '9.9.9.9'
[Install]
Slice=wrong.slice
"""
    drop_in = b"[Service]\r\n Environment = HTTP_PROXY=http://z.example:9\r\nSlice=ramnetengines.slice\r\n"
    said = unit_text([("unit", unit), ("drop-in", drop_in)])
    assert said.environment == {
        "HTTP_PROXY": ("http://z.example:9", "drop-in"),
        "NO_PROXY": ("x y", "unit"),
        "PLAIN": ("1", "unit"),
        "HTTPS_PROXY": ("http://b.example:2", "unit"),
        "ALL_PROXY": ("socks5://c.example", "unit"),
    }
    assert said.files == ("/etc/default/docker", "/etc/sysconfig/docker*")
    assert (said.slice, said.faults) == ("ramnetengines.slice", ())
    assert said.command == ("/usr/bin/dockerd", "-H", "fd://", "--dns", "9.9.9.9")


def test_an_empty_assignment_takes_back_what_came_before() -> None:
    unit = (
        b"[Service]\nEnvironment=HTTP_PROXY=http://a.example\nEnvironmentFile=/a\nSlice=a.slice\n"
    )
    said = unit_text(
        [("unit", unit + b"ExecStart=/a\nExecStart=\nEnvironment=\nEnvironmentFile=\nSlice=\n")]
    )
    assert (said.environment, said.files, said.slice, said.command) == ({}, (), "", ())


@pytest.mark.parametrize("key", ["Environment", "ExecStart"])
def test_quotes_of_a_unit_that_do_not_close(key: str) -> None:
    said = unit_text([("unit", f"[Service]\n{key}='HTTP_PROXY=hunter2\nSlice=a.slice\n".encode())])
    assert said.faults == (Unreadable("unit", f"the quotes of {key}= do not close"),)
    assert (said.environment, said.command, said.slice) == ({}, (), "a.slice")


# --- containerd and Podman


def test_the_registries_of_containerd() -> None:
    for plugin in ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"):
        text = f"""
        version = 2
        [plugins."{plugin}".registry]
        config_path = "/etc/containerd/certs.d:/etc/docker/certs.d"
        [plugins."{plugin}".registry.mirrors."docker.io"]
        endpoint = ["https://user:hunter2@mirror.example", "http://10.0.0.7:5000"]
        [plugins."{plugin}".registry.configs."old.example:5000".tls]
        insecure_skip_verify = true
        [plugins."{plugin}".registry.configs."good.example".tls]
        insecure_skip_verify = false
        """
        facts, folders = containerd_config(text.encode(), "f")
        assert brief(facts) == [
            "mirror docker.io mirror.example:443",
            "mirror docker.io 10.0.0.7:5000",
            "named old.example:5000 settings",
            "insecure old.example:5000",
            "named good.example:443 settings",
        ]
        assert folders == ("/etc/containerd/certs.d", "/etc/docker/certs.d")
        assert SECRET not in repr(facts)


def test_a_hosts_toml_of_containerd() -> None:
    text = b"""
    server = "https://registry-1.docker.io"
    [host."https://mirror.example"]
    capabilities = ["pull", "resolve"]
    [host."https://10.0.0.7:5000"]
    skip_verify = true
    """
    assert brief(hosts_toml("docker.io", text, "f")) == [
        "mirror docker.io mirror.example:443",
        "mirror docker.io 10.0.0.7:5000",
        "insecure 10.0.0.7:5000",
    ]
    elsewhere = b'server = "https://notdocker.io"'
    assert brief(hosts_toml("docker.io", elsewhere, "f")) == ["mirror docker.io notdocker.io:443"]


def test_a_registries_conf_of_podman() -> None:
    text = b"""
    unqualified-search-registries = ["docker.io"]
    [[registry]]
    prefix = "docker.io/library"
    location = "registry-1.docker.io/library"
    [[registry.mirror]]
    location = "mirror.example:5000/hub"
    insecure = true
    [[registry]]
    location = "old.example"
    insecure = true
    [[registry]]
    prefix = "quay.io"
    location = "elsewhere.example"
    """
    assert brief(registries_conf(text, "f")) == [
        "named docker.io:443 search",
        "mirror docker.io mirror.example:5000",
        "insecure mirror.example:5000",
        "named old.example:443 settings",
        "insecure old.example:443",
        "mirror quay.io elsewhere.example:443",
    ]


@pytest.mark.parametrize(
    ("folder", "named"),
    [
        ("quay.io", ["named quay.io:443 settings"]),
        ("reg.example:5000", ["named reg.example:5000 settings"]),
        ("reg.example_5000_", ["named reg.example:5000 settings"]),
        ("10.0.0.7_5000_", ["named 10.0.0.7:5000 settings"]),
        ("_default", []),
    ],
)
def test_a_folder_without_mirrors_names_its_registry(folder: str, named: list[str]) -> None:
    assert brief(hosts_toml(folder, b"", "f")) == named
    with_mirror = brief(hosts_toml(folder, b'[host."https://m.example"]', "f"))
    assert [line.split()[0] for line in with_mirror] == ["mirror"]


def test_a_blocked_entry_of_podman_is_no_registry_in_use() -> None:
    text = b"""
    [[registry]]
    location = "blocked.example"
    blocked = true
    [[registry]]
    prefix = "*.wild.example"
    [[registry]]
    """
    assert brief(registries_conf(text, "f")) == []


def test_a_buildkitd_toml() -> None:
    text = b"""
    [registry."docker.io"]
    mirrors = ["mirror.example:5000", "hub.example/proxy"]
    http = true
    [registry."plain.example"]
    insecure = true
    [registry."odd.example"]
    mirrors = 7
    """
    assert brief(buildkitd_toml(text, "f")) == [
        "mirror docker.io mirror.example:5000",
        "mirror docker.io hub.example:443",
        "insecure docker.io:443",
        "named plain.example:443 settings",
        "insecure plain.example:443",
        "named odd.example:443 settings",
        "unreadable: mirrors is a number, not a list",
    ]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"[plugins\n", "it is not valid TOML (line 1)"),
        (b'a = 1\nb = "hunter2', "it is not valid TOML"),
        (b"\xff", "it is not valid TOML"),
        (b"a = " + b"[" * 100_000, "it is not valid TOML"),
        (b"a = " + b"1" * 10_000, "it is not valid TOML"),
    ],
)
def test_toml_that_does_not_parse(data: bytes, why: str) -> None:
    found, folders = containerd_config(data, "f")
    assert (brief(found), folders) == ([f"unreadable: {why}"], ())
    assert brief(hosts_toml("docker.io", data, "f")) == [f"unreadable: {why}"]
    assert brief(registries_conf(data, "f")) == [f"unreadable: {why}"]
    assert brief(buildkitd_toml(data, "f")) == [f"unreadable: {why}"]


@pytest.mark.parametrize(
    "text",
    [
        "plugins = 7",
        "[plugins]\na = 7",
        '[plugins.a]\nregistry = "x"',
        "registry = 7",
        "host = [1]",
        "[plugins.a.registry]\nmirrors = [1]\nconfigs = 7",
        "registry = [1, 2]",
    ],
)
def test_tables_of_another_shape_say_nothing(text: str) -> None:
    data = text.encode()
    assert containerd_config(data, "f") == ((), ())
    assert brief(hosts_toml("docker.io", data, "f")) == ["named docker.io:443 settings"]
    assert brief(registries_conf(data, "f")) == []
    assert brief(buildkitd_toml(data, "f")) == []


@pytest.mark.parametrize(
    "parse",
    [lambda data: registries_conf(data, "f"), lambda data: hosts_toml("docker.io", data, "f")],
)
def test_values_of_another_kind_are_told(parse: object) -> None:
    assert callable(parse)
    text = b'server = 7\n[[registry]]\nlocation = 7\n[[registry.mirror]]\nlocation = "m.example"'
    lines = brief(parse(text))
    assert [line for line in lines if line.endswith("is a number, not a string")]


def test_an_endpoint_shows_its_port() -> None:
    assert str(Endpoint(None, 80)) == "(an address that cannot be read)"
