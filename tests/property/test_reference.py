from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from ramnet.core.names import parse_address
from ramnet.core.reference import Reference, parse_reference
from ramnet.errors import NameFault, ReferenceFault

WORD = st.from_regex(r"[a-z0-9]{1,6}((\.|_|__|-{1,3})[a-z0-9]{1,6}){0,2}", fullmatch=True)
PATH = st.lists(WORD, min_size=1, max_size=4).map("/".join)
LABEL = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,6}[a-zA-Z0-9])?", fullmatch=True)
HOST = st.one_of(
    st.lists(LABEL, min_size=1, max_size=4).map(".".join),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda ip: f"[{ip}]"),
    st.sampled_from(["docker.io", "index.docker.io", "localhost", "quay.io"]),
)
PORT = st.none() | st.integers(1, 65535)
TAG = st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
DIGEST = st.none() | st.from_regex(r"sha256:[a-f0-9]{64}", fullmatch=True)


@st.composite
def references(draw: st.DrawFn) -> str:
    host, port = draw(st.none() | HOST), draw(PORT)
    tag, digest = draw(TAG), draw(DIGEST)
    domain = "" if host is None else f"{host}/" if port is None else f"{host}:{port}/"
    suffix = "" if tag is None else f":{tag}"
    return f"{domain}{draw(PATH)}{suffix}" + ("" if digest is None else f"@{digest}")


def outcome(text: str) -> Reference | ReferenceFault:
    """Return the reference or the fault; any other error ends the test."""
    try:
        return parse_reference(text)
    except ReferenceFault as fault:
        return fault


@given(references())
def test_what_the_grammar_makes_parses_and_both_its_forms_read_back(text: str) -> None:
    reference = outcome(text)
    if isinstance(reference, ReferenceFault):
        # A host that the grammar allows and no network has ("1.2", "[::]"), or a first part of the
        # path that reads as a host and has an underscore.
        assert isinstance(reference.__cause__, NameFault) or "_" in text.partition("/")[0]
        return
    assert parse_reference(str(reference)) == reference
    assert parse_reference(reference.familiar) == reference
    assert parse_address(str(reference.wire)) == reference.wire


@given(
    st.one_of(
        st.text(max_size=60),
        st.text(alphabet="aB0.-_/:@[]f ", max_size=40),
        references().flatmap(
            lambda text: st.integers(0, len(text)).map(lambda at: f"{text[:at]}\n{text[at:]}")
        ),
    )
)
def test_any_text_gives_a_reference_or_a_fault_with_a_hint(text: str) -> None:
    reference = outcome(text)
    if isinstance(reference, ReferenceFault):
        assert reference.hint
        assert reference.message.isprintable()
        return
    assert text.isascii()
    assert "\n" not in text
    assert parse_reference(str(reference)) == reference
    assert parse_reference(reference.familiar) == reference


@given(PATH, TAG)
def test_without_a_host_the_image_is_on_docker_hub(path: str, tag: str | None) -> None:
    first, slash, _ = path.partition("/")
    assume(not slash or ("." not in first and first != "localhost"))
    text = path if tag is None else f"{path}:{tag}"
    reference = parse_reference(text)
    assert reference.wire_host == "registry-1.docker.io"
    assert reference.path == (path if slash else f"library/{path}")
