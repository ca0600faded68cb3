"""The table of forms follows the tests of github.com/distribution/reference."""

from __future__ import annotations

import pytest

from ramnet.core.reference import MAX_TEXT, Reference, parse_reference
from ramnet.errors import NameFault, ReferenceFault

HEX = "f" * 64
SHA256 = f"sha256:{HEX}"
SHA384 = f"sha384:{'f' * 96}"
SHA512 = f"sha512:{'f' * 128}"


@pytest.mark.parametrize(
    ("text", "domain", "path", "tag", "digest"),
    [
        # Docker Hub
        ("ubuntu", "docker.io", "library/ubuntu", None, None),
        ("ubuntu:24.04", "docker.io", "library/ubuntu", "24.04", None),
        (f"ubuntu@{SHA256}", "docker.io", "library/ubuntu", None, SHA256),
        (f"ubuntu:24.04@{SHA256}", "docker.io", "library/ubuntu", "24.04", SHA256),
        ("library/ubuntu", "docker.io", "library/ubuntu", None, None),
        ("docker.io/ubuntu", "docker.io", "library/ubuntu", None, None),
        ("docker.io/library/ubuntu", "docker.io", "library/ubuntu", None, None),
        ("docker.io/ubuntu:latest", "docker.io", "library/ubuntu", "latest", None),
        ("index.docker.io/ubuntu", "docker.io", "library/ubuntu", None, None),
        ("index.docker.io/me/app", "docker.io", "me/app", None, None),
        ("me/app", "docker.io", "me/app", None, None),
        ("me/team/app", "docker.io", "me/team/app", None, None),
        ("library/a/b", "docker.io", "library/a/b", None, None),
        ("foo/foo_bar.com:8080", "docker.io", "foo/foo_bar.com", "8080", None),
        ("test_com", "docker.io", "library/test_com", None, None),
        ("test_com/foo", "docker.io", "test_com/foo", None, None),
        ("lowercase:Uppercase", "docker.io", "library/lowercase", "Uppercase", None),
        # one word is never a host, even where it looks like one
        ("localhost", "docker.io", "library/localhost", None, None),
        ("localhost:5000", "docker.io", "library/localhost", "5000", None),
        ("test.com", "docker.io", "library/test.com", None, None),
        ("test.com:tag", "docker.io", "library/test.com", "tag", None),
        ("192.168.1.1:5000", "docker.io", "library/192.168.1.1", "5000", None),
        ("registry-1.docker.io/ubuntu", "registry-1.docker.io", "ubuntu", None, None),
        (f"localhost@{SHA256}", "docker.io", "library/localhost", None, SHA256),
        (f"localhost:8080@{SHA256}", "docker.io", "library/localhost", "8080", SHA256),
        ("foo_bar.com:8080", "docker.io", "library/foo_bar.com", "8080", None),
        ("10.0.0.1", "docker.io", "library/10.0.0.1", None, None),
        # a bare digest is one to `docker run`, but a pull takes it for a name and a tag
        (f"sha256:{HEX}", "docker.io", "library/sha256", HEX, None),
        ("do__cker/app", "docker.io", "do__cker/app", None, None),
        ("a-b/c", "docker.io", "a-b/c", None, None),
        ("jess/t", "docker.io", "jess/t", None, None),
        (f"docker.io/{HEX}", "docker.io", f"library/{HEX}", None, None),
        ("index.docker.io/library/ubuntu:1", "docker.io", "library/ubuntu", "1", None),
        # only the exact names are Docker Hub: these are hosts of their own
        ("docker.io:443/ubuntu", "docker.io:443", "ubuntu", None, None),
        ("DOCKER.IO/ubuntu", "DOCKER.IO", "ubuntu", None, None),
        # other registries
        ("0101.com/app", "0101.com", "app", None, None),
        ("ab.c-om/app", "ab.c-om", "app", None, None),
        ("a.b/app", "a.b", "app", None, None),
        ("FOO/bar", "FOO", "bar", None, None),
        ("xn--n3h.com:18080/foo", "xn--n3h.com:18080", "foo", None, None),
        ("x.io/xn--7o8h.com/app", "x.io", "xn--7o8h.com/app", None, None),
        ("x.io/some_sep__us/app", "x.io", "some_sep__us/app", None, None),
        ("x.io/a--b.c--d.e---f--g", "x.io", "a--b.c--d.e---f--g", None, None),
        (f"localhost:8080/name@{SHA256}", "localhost:8080", "name", None, SHA256),
        ("ghcr.io/acme/app:1", "ghcr.io", "acme/app", "1", None),
        ("test.com/repo:tag", "test.com", "repo", "tag", None),
        ("sub-dom1.foo.com/bar/baz/quux", "sub-dom1.foo.com", "bar/baz/quux", None, None),
        ("b.gcr.io/t.example.com/my-app:t", "b.gcr.io", "t.example.com/my-app", "t", None),
        ("localhost/app", "localhost", "app", None, None),
        ("localhost:5000/app", "localhost:5000", "app", None, None),
        ("test:5000/repo", "test:5000", "repo", None, None),
        ("test:5000/repo:tag", "test:5000", "repo", "tag", None),
        (f"test:5000/repo@{SHA256}", "test:5000", "repo", None, SHA256),
        (f"test:5000/repo:tag@{SHA512}", "test:5000", "repo", "tag", SHA512),
        (f"test:5000/repo@{SHA384}", "test:5000", "repo", None, SHA384),
        ("xn--n3h.com/myimage:xn--n3h.com", "xn--n3h.com", "myimage", "xn--n3h.com", None),
        ("Example.com/app", "Example.com", "app", None, None),
        ("Uppercase/lowercase:tag", "Uppercase", "lowercase", "tag", None),
        # IP literals
        ("192.168.1.1/repo", "192.168.1.1", "repo", None, None),
        ("192.168.1.1:5000/repo:5050", "192.168.1.1:5000", "repo", "5050", None),
        ("[2001:db8::1]/repo", "[2001:db8::1]", "repo", None, None),
        ("[2001:db8:1:2:3:4:5:6]/repo:tag", "[2001:db8:1:2:3:4:5:6]", "repo", "tag", None),
        ("[::1]:5000/repo", "[::1]:5000", "repo", None, None),
        (f"[2001:db8::]:5000/r:t@{SHA256}", "[2001:db8::]:5000", "r", "t", SHA256),
        ("127.0.0.1:5000/library/a", "127.0.0.1:5000", "library/a", None, None),
        (
            "[2001:0db8:85a3:0:0:8a2e:370:7334]/a",
            "[2001:0db8:85a3:0:0:8a2e:370:7334]",
            "a",
            None,
            None,
        ),
        (f"[::1]/repo:tag@{SHA512}", "[::1]", "repo", "tag", SHA512),
        # separators and limits
        ("x/a.b_c__d---e", "docker.io", "x/a.b_c__d---e", None, None),
        ("a:" + "t" * 128, "docker.io", "library/a", "t" * 128, None),
        ("a:_t", "docker.io", "library/a", "_t", None),
        ("x.io/" + "a" * 255, "x.io", "a" * 255, None, None),
        ("a/" * 127 + "a:tag", "docker.io", "a/" * 127 + "a", "tag", None),
        (HEX[:63], "docker.io", f"library/{HEX[:63]}", None, None),
        (f"{HEX}:tag", "docker.io", f"library/{HEX}", "tag", None),
        (f"me/{HEX}", "docker.io", f"me/{HEX}", None, None),
    ],
)
def test_forms(text: str, domain: str, path: str, tag: str | None, digest: str | None) -> None:
    reference = parse_reference(text)
    assert reference == Reference(domain, path, tag, digest)
    assert parse_reference(str(reference)) == reference
    assert parse_reference(reference.familiar) == reference


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "is empty", "ubuntu"),
        ("a" * (MAX_TEXT + 1), "too long", "255"),
        (HEX, "image ID", "name of the image"),
        ("https://quay.io/a/b", "is a URL", "'https://'"),
        # the path
        (":justtag", "not a repository name", "lower-case"),
        (f"@{SHA256}", "not a repository name", "lower-case"),
        ("docker.io/", "not a repository name", "lower-case"),
        ("quay.io/", "not a repository name", "lower-case"),
        ("quay.io//a", "not a repository name", "lower-case"),
        ("/a", "not a repository name", "lower-case"),
        ("a/", "not a repository name", "lower-case"),
        ("a//b", "not a repository name", "lower-case"),
        ("-a", "not a repository name", "lower-case"),
        ("a-", "not a repository name", "lower-case"),
        ("a..b", "not a repository name", "lower-case"),
        ("a___b", "not a repository name", "lower-case"),
        ("a._b", "not a repository name", "lower-case"),
        ("aa/asdf$$^/aa", "not a repository name", "lower-case"),
        ("a b", "not a repository name", "lower-case"),
        ("ubuntu\n", "not a repository name", "lower-case"),
        ("ubuntü", "not a repository name", "lower-case"),
        ("[2001:db8::1]", "not a repository name", "lower-case"),
        ("[2001:db8::1]:5000", "not a repository name", "lower-case"),
        ("Uppercase:tag", "must be lower case", "library/uppercase"),
        ("test:5000/Uppercase/lowercase:tag", "must be lower case", "uppercase/lowercase"),
        ("quay.io/Acme/app", "must be lower case", "acme/app"),
        ("x.io/" + "a" * 256, "256 characters", "255"),
        ("a/" * 128 + "a:tag", "257 characters", "255"),
        ("_a/_b", "not a repository name", "lower-case"),
        ("____/____", "not a repository name", "lower-case"),
        ("a_/b_", "not a repository name", "lower-case"),
        ("a-/b", "not a repository name", "lower-case"),
        ("a_.b/c", "not the host of a registry", "IPv6"),
        ("a-.b/c", "not the host of a registry", "IPv6"),
        ("x.io/.dots/a", "not a repository name", "lower-case"),
        ("x.io/a..b/c", "not a repository name", "lower-case"),
        ("x.io/a///b", "not a repository name", "lower-case"),
        ("[::1]:tag", "not a repository name", "lower-case"),
        # the tag
        ("a:in~valid", "is not a tag", "128"),
        ("a:", "'' is not a tag", "128"),
        ("a:" + "t" * 129, "is not a tag", "128"),
        ("a:-t", "is not a tag", "start"),
        ("a:.t", "is not a tag", "start"),
        ("a:b:c", "'b:c' is not a tag", "128"),
        ("a:tag\n", "is not a tag", "128"),
        ("a:täg", "is not a tag", "128"),
        # the digest
        ("a@", "'' is not a digest", "sha256"),
        ("a@sha256", "not a digest", "sha256"),
        (f"a@invaliddigest:{HEX}", "not a digest", "sha256"),
        (f"a@SHA256:{HEX}", "not a digest", "sha256"),
        ("a@sha256:ffff", "malformed", "64"),
        (f"a@sha256:{HEX}f", "malformed", "64"),
        (f"a@sha512:{HEX}", "malformed", "128"),
        (f"a@sha256:{HEX.upper()}", "malformed", "64"),
        (f"a@sha256:{'g' * 64}", "malformed", "64"),
        (f"a@{SHA256}@{SHA256}", "malformed", "64"),
        (f"a@{SHA256}:tag", "malformed", "64"),
        ("a@2bad", "not a digest", "sha256"),
        (f"a@sha256:{HEX[:34]}", "malformed", "64"),
        # the host
        ("docker./a", "not the host of a registry", "IPv6"),
        ("a.io-/a", "not the host of a registry", "IPv6"),
        ("a.-io/a", "not the host of a registry", "IPv6"),
        ("-docker.io/a", "not the host of a registry", "IPv6"),
        ("localhost:http/a", "not the host of a registry", "IPv6"),
        ("do__cker:8080/a", "not the host of a registry", "IPv6"),
        ("[::1]5000/a", "not the host of a registry", "IPv6"),
        ("[::1]::5000/a", "not the host of a registry", "IPv6"),
        ("[2001:db8:3:4::192.0.2.33]:5000/a", "not the host of a registry", "IPv6"),
        ("[fe80::1%@zone]:5000/a", "not the host of a registry", "IPv6"),
        ("[fd00123123123]:5000/a", "not an IPv6 address", "2001:db8::1"),
        ("192.168.1.1:750050/a", "is not a port", "65535"),
        ("foo_bar.com/repo", "not the host of a registry", "IPv6"),
        ("a.io:/repo", "not the host of a registry", "IPv6"),
        ("a.io:tag/repo", "not the host of a registry", "IPv6"),
        ("a.io:*/repo", "not the host of a registry", "IPv6"),
        (".io/repo", "not the host of a registry", "IPv6"),
        ("a..io/repo", "not the host of a registry", "IPv6"),
        ("-a.io/repo", "not the host of a registry", "IPv6"),
        ("a-.io/repo", "not the host of a registry", "IPv6"),
        ("münchen.example/repo", "not the host of a registry", "IPv6"),
        ("*.io/repo", "not the host of a registry", "IPv6"),
        ("2001:db8::1/repo", "not the host of a registry", "IPv6"),
        ("[fe80::1%eth0]:5000/repo", "not the host of a registry", "IPv6"),
        ("[::g]:5000/repo", "not the host of a registry", "IPv6"),
        ("a.io\n/repo", "not the host of a registry", "IPv6"),
        ("[:::]:5000/repo", "not an IPv6 address", "2001:db8::1"),
        ("a.io:99999/repo", "is not a port", "65535"),
        ("a.io:0/repo", "is not a port", "65535"),
        ("1.2/repo", "ends in a number", "four decimal"),
        ("0.0.0.0:5000/repo", "not the address of one machine", "127.0.0.1"),
        (f"{'a' * 64}.io/repo", "too long", "63"),
    ],
)
def test_faults(text: str, message: str, hint: str) -> None:
    with pytest.raises(ReferenceFault) as caught:
        parse_reference(text)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_fault_of_the_host_keeps_its_cause() -> None:
    with pytest.raises(ReferenceFault) as caught:
        parse_reference("a.io:99999/repo")
    assert isinstance(caught.value.__cause__, NameFault)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("ubuntu", "registry-1.docker.io", None),
        ("index.docker.io/ubuntu", "registry-1.docker.io", None),
        ("Docker.io/me/app", "docker.io", None),
        ("quay.io/a/b", "quay.io", None),
        ("Quay.IO/a/b", "quay.io", None),
        ("localhost:5000/a", "localhost", 5000),
        ("10.0.0.1:5000/a", "10.0.0.1", 5000),
        ("[::1]:5000/a", "::1", 5000),
        ("[2001:DB8:0::1]/a", "2001:db8::1", None),
    ],
)
def test_the_host_that_a_pull_dials(text: str, host: str, port: int | None) -> None:
    reference = parse_reference(text)
    assert reference.wire_host == host
    assert reference.wire_port == port
    assert reference.wire.port == port


@pytest.mark.parametrize(
    ("text", "familiar"),
    [
        ("docker.io/library/ubuntu:24.04", "ubuntu:24.04"),
        (f"docker.io/library/ubuntu@{SHA256}", f"ubuntu@{SHA256}"),
        ("docker.io/me/app", "me/app"),
        ("docker.io/library/a/b", "library/a/b"),
        ("quay.io/a/b:1", "quay.io/a/b:1"),
        ("docker.io/library/localhost", "localhost"),
        # where the short form would be read as something else, the domain stays
        ("docker.io/localhost/app", "docker.io/localhost/app"),
        ("docker.io/foo.bar/app", "docker.io/foo.bar/app"),
        (f"docker.io/library/{HEX}", f"docker.io/library/{HEX}"),
        (f"docker.io/library/{HEX}:tag", f"{HEX}:tag"),
    ],
)
def test_familiar(text: str, familiar: str) -> None:
    assert parse_reference(text).familiar == familiar
