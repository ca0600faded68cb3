"""What settings and processes of container engines mean for enforcement."""

from __future__ import annotations

from datetime import date
from ipaddress import ip_network

import pytest

from ramnet.core.allow import AllowList, allow_list
from ramnet.core.catalog import load_catalog
from ramnet.core.config import Config, ScopeMode, parse_config
from ramnet.core.engineconf import (
    MAX_FINDINGS,
    WRAPPER,
    Context,
    Finding,
    Kind,
    findings,
    slice_path,
)
from ramnet.core.enginefacts import (
    Api,
    ContainerDns,
    Desktop,
    DockerProxy,
    Engine,
    EngineName,
    Fact,
    Insecure,
    Mirror,
    Proxy,
    RootlessSetup,
    Snapshotter,
    Unit,
    Unreadable,
    Userland,
    endpoint,
)
from ramnet.core.policy import parse_policy

SLICE = "ramnetengines.slice"
INSIDE = f"{SLICE}/docker.service"
OUTSIDE = "system.slice/docker.service"
W, N = Kind.WARNING, Kind.NOT_COVERED


def listed(*addresses: str, more: str = "") -> AllowList:
    entries = "".join(f'[[registry]]\naddress = "{address}"\n' for address in addresses)
    text = f'version = 1\norganization = "acme"\n{entries}{more}'
    policy = parse_policy(text, source="policy.toml", ramnet_version="0.1.0")
    return allow_list(policy, load_catalog(), date(2026, 1, 1))


def judged(
    *facts: Fact,
    allowed: AllowList | None = None,
    mode: ScopeMode = ScopeMode.CGROUP,
    config: str = "",
) -> tuple[Finding, ...]:
    settings = parse_config(config, source="ramnet.toml") if config else Config()
    resolvers = frozenset({"192.0.2.53"})
    return findings(facts, Context(settings, mode, allowed, resolvers, "/sys/fs/cgroup"))


def one(*facts: Fact, **settings: object) -> Finding:
    (found,) = judged(*facts, **settings)  # type: ignore[arg-type]
    assert found.subject
    assert found.text
    assert found.hint
    assert str(found) == f"{found.subject}: {found.text}"
    return found


def proxy(url: str, **more: bool) -> Proxy:
    return Proxy(endpoint(url, "http"), "HTTPS_PROXY", "dockerd (pid 7)", **more)


def engine(
    name: EngineName = EngineName.DOCKERD,
    cgroup: str | None = INSIDE,
    *,
    uid: int = 0,
    own: bool | None = True,
    rootless: str = "",
) -> Engine:
    return Engine(name, 7, uid, cgroup, own, rootless)


# --- proxies


def test_a_proxy_that_the_policy_does_not_list_refuses_every_pull() -> None:
    found = one(proxy("http://proxy.example:3128"), allowed=listed("docker.io"))
    assert (found.kind, found.subject) == (W, "proxy proxy.example:3128")
    assert "HTTPS_PROXY of dockerd (pid 7): every pull goes to the proxy" in found.text
    assert "the policy does not list it: it is refused" in found.text
    assert "take the setting away" in found.hint


@pytest.mark.parametrize(
    "allowed",
    [
        listed("proxy.example:3128"),
        listed("proxy.example:*"),
        listed(more='[[destination]]\naddress = "proxy.example"\nports = [3128]\nreason = "x"\n'),
    ],
    ids=["registry", "any port", "destination"],
)
def test_behind_a_proxy_that_is_listed_nothing_is_judged(allowed: AllowList) -> None:
    found = one(proxy("http://proxy.example:3128"), allowed=allowed)
    assert found.kind is N
    assert (
        "the policy lists it, and so what the engine fetches behind it is not judged" in found.text
    )


def test_a_listed_host_is_not_listed_on_every_port() -> None:
    found = one(proxy("http://proxy.example:3128"), allowed=listed("proxy.example"))
    assert found.kind is W
    assert "does not list it" in found.text


def test_without_a_policy_both_are_said() -> None:
    found = one(proxy("http://proxy.example:3128"))
    assert found.kind is W
    assert "refused unless the policy lists it, and while it is listed" in found.text


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:3128", "http://localhost:3128", "http://[::1]:3128"]
)
def test_a_proxy_on_loopback_is_no_way_round(url: str) -> None:
    found = one(proxy(url), allowed=listed("docker.io"))
    assert found.kind is W
    assert "it is refused; that the proxy is on loopback makes no difference" in found.text
    assert one(proxy(url), allowed=listed("localhost:3128")).kind is N


def test_a_proxy_by_its_address() -> None:
    networks = '[[registry]]\naddress = "a.example:3128"\nnetworks = ["10.0.0.0/8"]\n'
    assert one(proxy("http://10.0.0.7:3128"), allowed=listed(more=networks)).kind is N
    assert one(proxy("http://10.0.0.7:3129"), allowed=listed(more=networks)).kind is W
    assert one(proxy("http://11.0.0.7:3128"), allowed=listed(more=networks)).kind is W


def test_a_proxy_that_several_settings_name_is_told_once() -> None:
    other = Proxy(endpoint("proxy.example:3128", "http"), "http-proxy", "/etc/docker/daemon.json")
    found = one(proxy("http://proxy.example:3128", direct=True), other, other)
    assert "HTTPS_PROXY of dockerd (pid 7), http-proxy of /etc/docker/daemon.json: " in found.text
    assert found.text.count("daemon.json") == 1
    assert "(but for the hosts of NO_PROXY)" in found.text


def test_a_proxy_whose_address_cannot_be_read() -> None:
    found = one(proxy("http://user:hunter2"), allowed=listed("docker.io"))
    assert found.subject == "proxy (an address that cannot be read)"
    assert "hunter2" not in repr(found)


STRICT = '[scope]\nmode = "netns"\nweak = "strict"\n'


@pytest.mark.parametrize(
    ("config", "mode", "port", "kind"),
    [
        (STRICT, ScopeMode.NETNS, 3128, N),
        (STRICT, ScopeMode.UID, 3128, N),
        (STRICT, ScopeMode.NETNS, 443, W),
        ("", ScopeMode.UID, 443, N),
        ("", ScopeMode.MARK, 3128, W),
        ("", ScopeMode.AUTO, 3128, W),
    ],
)
def test_a_weak_scope_does_not_refuse_a_proxy_on_another_port(
    config: str, mode: ScopeMode, port: int, kind: Kind
) -> None:
    for allowed in (None, listed("docker.io")):
        found = one(proxy(f"http://p.example:{port}"), allowed=allowed, mode=mode, config=config)
        assert found.kind is kind
        assert (
            "is reached, and what the engine fetches behind it is not judged" in found.text
        ) == (kind is N)
    # A port of the policy is judged.
    with_port = listed("docker.io", "r.example:3128")
    found = one(proxy("http://p.example:3128"), allowed=with_port, mode=mode, config=config)
    assert found.kind is (N if mode in (ScopeMode.NETNS, ScopeMode.UID) and not config else W)


# --- mirrors and insecure registries


@pytest.mark.parametrize(
    ("allowed", "words"),
    [
        (None, "a mirror needs an entry of its own in the policy, else it is refused"),
        (listed("docker.io"), "a mirror needs an entry of its own in the policy, and has none"),
        (listed("mirror.example"), "the policy lists it: they come from there, docker.io listed"),
    ],
    ids=["no policy", "not listed", "listed"],
)
def test_a_mirror_needs_an_entry_of_its_own(allowed: AllowList | None, words: str) -> None:
    mirror = Mirror("docker.io", endpoint("https://mirror.example", "https"), "daemon.json")
    found = one(mirror, allowed=allowed)
    assert (found.kind, found.subject) == (W, "mirror mirror.example:443")
    assert "daemon.json: it is asked for images of docker.io" in found.text
    assert words in found.text
    assert ('address = "mirror.example:443"' in found.hint) == ("needs an entry" in found.text)


def test_a_mirror_that_a_weak_scope_does_not_judge() -> None:
    mirror = Mirror("docker.io", endpoint("https://mirror.example:8443", "https"), "daemon.json")
    found = one(mirror, allowed=listed("docker.io"), mode=ScopeMode.NETNS, config=STRICT)
    assert found.kind is N
    assert "scope netns judges the ports of registries only, and so it is reached" in found.text


def test_of_an_insecure_registry_only_the_address_is_known() -> None:
    entry = Insecure(endpoint("old.example:5000", "https"), "daemon.json")
    found = one(entry, allowed=listed("old.example:5000"))
    assert (found.kind, found.subject) == (W, "insecure registry old.example:5000")
    assert found.text.endswith("that the right one answers is known by its address alone")
    assert "not list it: it is refused" in one(entry, allowed=listed("docker.io")).text
    found = one(Insecure(ip_network("10.1.0.0/16"), "daemon.json"))
    assert found.subject == "insecure registries in 10.1.0.0/16"


# --- other settings


def test_an_engine_that_takes_orders_over_the_network() -> None:
    found = one(Api("tcp://0.0.0.0:2375", "daemon.json"))
    assert (found.kind, found.subject) == (W, "engine API on tcp://0.0.0.0:2375")
    assert "as good as root" in found.text


def test_containers_that_ask_somebody_else_for_names() -> None:
    found = one(ContainerDns(("192.0.2.53", "9.9.9.9"), "daemon.json"))
    assert (found.kind, found.subject) == (W, "dns of containers")
    assert "ask 9.9.9.9 for names" in found.text
    assert judged(ContainerDns(("192.0.2.53",), "daemon.json")) == ()


def test_what_could_not_be_read_is_told() -> None:
    found = one(Unreadable("/etc/docker/daemon.json", "it is not valid JSON (line 3)"))
    assert (found.kind, found.subject) == (W, "/etc/docker/daemon.json")
    assert found.text.startswith("it is not valid JSON (line 3)")


def test_images_in_containerd_need_containerd_in_the_group() -> None:
    found = one(Snapshotter("daemon.json"))
    assert (found.kind, found.subject) == (W, "containerd-snapshotter")
    assert "containerd.service.d/ramnet.conf" in found.hint
    assert judged(Snapshotter("daemon.json"), engine(EngineName.CONTAINERD)) == ()
    outside = judged(Snapshotter("daemon.json"), engine(EngineName.CONTAINERD, OUTSIDE))
    assert [item.subject for item in outside] == ["containerd (pid 7)", "containerd-snapshotter"]
    assert judged(Snapshotter("daemon.json"), mode=ScopeMode.UID) == ()


def test_ports_on_localhost_need_a_docker_proxy_outside_the_engine() -> None:
    found = one(engine())
    assert (found.kind, found.subject) == (W, "userland-proxy")
    assert "connections to ports published on localhost are refused" in found.text
    assert WRAPPER in found.hint
    wrapped = Userland(None, f"/usr/libexec/ramnet/{WRAPPER}", "daemon.json")
    assert one(engine(), Userland(enabled=True, path="/usr/bin/docker-proxy", source="f")) == found
    assert one(Userland(enabled=True, path=None, source="f")) == found
    assert judged(engine(), wrapped) == ()
    assert judged(engine(), wrapped, DockerProxy(9, "ramnetproxy.slice")) == ()
    assert judged(engine(), Userland(enabled=False, path=None, source="f")) == ()
    assert judged(engine(), mode=ScopeMode.UID) == ()
    assert judged(engine(EngineName.PODMAN)) == ()
    assert judged() == ()


def test_a_docker_proxy_that_was_not_moved_is_found() -> None:
    wrapped = Userland(None, f"/usr/libexec/ramnet/{WRAPPER}", "daemon.json")
    found = one(engine(), wrapped, DockerProxy(9, INSIDE))
    assert "docker-proxy (pid 9) is in the cgroup of the engine all the same" in found.text


# --- where engines run

PODMAN = EngineName.PODMAN


def test_an_engine_inside_the_group_is_covered() -> None:
    for mode in (ScopeMode.AUTO, ScopeMode.CGROUP, ScopeMode.MARK):
        for cgroup in (SLICE, INSIDE):
            assert judged(engine(PODMAN, cgroup), mode=mode) == ()
        assert judged(engine(PODMAN, own=None), mode=mode) == ()


@pytest.mark.parametrize("cgroup", [OUTSIDE, f"{SLICE}x/docker.service", f"a/{SLICE}", "", None])
@pytest.mark.parametrize("mode", [ScopeMode.AUTO, ScopeMode.CGROUP, ScopeMode.MARK])
def test_an_engine_outside_the_group_is_not_covered(mode: ScopeMode, cgroup: str | None) -> None:
    found = one(engine(PODMAN, cgroup), mode=mode)
    assert (found.kind, found.subject) == (N, "podman (pid 7)")
    assert found.text.endswith(f"outside {SLICE}: it is not judged as an engine")
    assert ("unknown" if cgroup is None else f"/{cgroup}, ") in found.text


def test_the_drop_in_that_puts_an_engine_there() -> None:
    found = one(engine(PODMAN, "system.slice/podman.service"))
    assert "/etc/systemd/system/podman.service.d/ramnet.conf" in found.hint
    assert f"[Service] and Slice={SLICE}" in found.hint
    assert "systemctl daemon-reload && systemctl restart podman.service" in found.hint


@pytest.mark.parametrize(
    ("config", "cgroup"),
    [("", "user.slice/session-1.scope"), ('[scope]\ncgroups = ["a/b"]\n', "a.slice/x.service")],
)
def test_without_a_unit_or_a_slice_it_is_started_there(config: str, cgroup: str) -> None:
    found = one(engine(PODMAN, cgroup), config=config)
    group = "a/b" if config else SLICE
    assert f"echo $$ >/sys/fs/cgroup/{group}/cgroup.procs && exec podman" in found.hint


def test_several_groups_are_all_good() -> None:
    config = '[scope]\ncgroups = ["a.slice", "b/c"]\n'
    assert judged(engine(PODMAN, "b/c/d"), config=config) == ()
    assert "outside a.slice and b/c" in one(engine(PODMAN, "b"), config=config).text


def test_a_cgroup_may_bear_any_name() -> None:
    found = one(engine(PODMAN, "a\x1b[31m/b\n.service"))
    assert found.text.isprintable()
    assert found.hint.isprintable()


def test_under_scope_uid_the_user_decides() -> None:
    assert judged(engine(PODMAN, OUTSIDE), mode=ScopeMode.UID) == ()
    found = one(engine(PODMAN, INSIDE, uid=1000), mode=ScopeMode.UID)
    assert (found.kind, "uid 1000" in found.text) == (N, True)
    config = "[scope]\nuids = [1000]\n"
    assert judged(engine(PODMAN, uid=1000), mode=ScopeMode.UID, config=config) == ()


def test_under_scope_netns_everybody_in_it_is_covered() -> None:
    assert judged(engine(PODMAN, OUTSIDE, uid=1000), mode=ScopeMode.NETNS) == ()


@pytest.mark.parametrize("mode", ScopeMode)
def test_an_engine_in_another_network_namespace_is_judged_as_a_container(mode: ScopeMode) -> None:
    found = one(engine(EngineName.BUILDKITD, own=False), mode=mode)
    assert (found.kind, found.subject) == (N, "buildkitd (pid 7)")
    assert "judged as class containers" in found.text


def test_a_rootless_engine_is_somebody_else() -> None:
    rootless = engine(cgroup="user.slice/a", uid=1000, own=False, rootless="started by rootlesskit")
    found = judged(rootless)[0]
    assert found.kind is N
    assert "it is rootless (started by rootlesskit, uid 1000)" in found.text
    assert "judged as class host or containers, not as an engine's" in found.text
    # One whose group is configured, and whose connections leave from here, is judged as any other.
    assert judged(engine(PODMAN, INSIDE, uid=1000, rootless="not run by root")) == ()


def test_the_settings_of_a_rootless_engine_that_does_not_run() -> None:
    setup = RootlessSetup("/home/a/.config/docker/daemon.json", 1000)
    found = one(setup)
    assert (found.kind, found.subject) == (N, "/home/a/.config/docker/daemon.json")
    running = engine(PODMAN, "user.slice/a", uid=1000, rootless="not run by root")
    assert [item.subject for item in judged(setup, running)] == ["podman (pid 7)"]
    other = engine(PODMAN, "user.slice/a", uid=1001, rootless="not run by root")
    assert len(judged(setup, other)) == 2


def test_a_unit_that_will_start_outside_is_told_before_it_does() -> None:
    unit = Unit("podman.service", PODMAN, "", "podman.service")
    found = one(unit)
    assert (found.kind, found.subject) == (N, "podman.service")
    assert "once started, it runs in system.slice/podman.service, outside" in found.text
    assert "podman.service.d/ramnet.conf" in found.hint
    assert judged(Unit("podman.service", PODMAN, SLICE, "f")) == ()
    assert judged(unit, mode=ScopeMode.NETNS) == ()
    # What runs is told by its process, once.
    assert [item.subject for item in judged(unit, engine(PODMAN, OUTSIDE))] == ["podman (pid 7)"]
    elsewhere = engine(PODMAN, own=False)
    assert [item.subject for item in judged(unit, elsewhere)] == [
        "podman (pid 7)",
        "podman.service",
    ]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a.slice", "a.slice"),
        ("a-b.slice", "a.slice/a-b.slice"),
        ("a-b-c.slice", "a.slice/a-b.slice/a-b-c.slice"),
        ("-.slice", ""),
        ("a.service", ""),
        ("", ""),
    ],
)
def test_where_the_cgroup_of_a_slice_is(name: str, path: str) -> None:
    assert slice_path(name) == path


def test_docker_desktop_is_out_of_reach() -> None:
    found = one(Desktop("the kernel 6.6.1-linuxkit"), Desktop("/run/guest-services"))
    assert (found.kind, found.subject) == (N, "Docker Desktop")
    assert "(seen: the kernel 6.6.1-linuxkit, /run/guest-services)" in found.text
    assert "Registry Access Management" in found.hint


# --- the report as a whole


def test_findings_are_bounded_and_each_is_told_once() -> None:
    facts = [Api(f"tcp://a:{n}", "f") for n in range(MAX_FINDINGS + 5)]
    found = judged(*facts, *facts)
    assert len(found) == MAX_FINDINGS + 1
    assert found[-1].text == "5 more findings are not shown"
    assert len(judged(*facts[:MAX_FINDINGS])) == MAX_FINDINGS


def test_a_machine_without_engines_has_none() -> None:
    assert judged(allowed=listed("docker.io")) == ()
