"""What the tests in virtual machines share: an image for each chosen kernel, made once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CONFINEMENT
from tests.debian import DebianError
from tests.vm.bare import Bare
from tests.vm.image import Builder, Image, make_code_disk
from tests.vm.kernels import Kernel, chosen
from tests.vm.world import VmWorld


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what needs a kernel on each that was chosen."""
    if "kernel" in metafunc.fixturenames:
        metafunc.parametrize("kernel", chosen().kernels, ids=str, indirect=True, scope="session")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is dear, unless all kernels are tried, and what a kernel is too old for.

    Left out and not skipped: in CI, where one kernel is tried, a skipped test is a failure.
    """
    left_out = [item for item in items if _is_left_out(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _is_left_out(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    kernel = callspec.params.get("kernel") if callspec is not None else None
    if marker := item.get_closest_marker("thorough"):
        if not chosen().thorough:
            return True
        # What depends on the rest of the system more than on the kernel names where it is tried.
        if marker.args and kernel is not None and kernel.name not in marker.args:
            return True
    # A module may say SINCE = (major, minor): of older kernels there is nothing to be said there.
    since = getattr(getattr(item, "module", None), "SINCE", None)
    return since is not None and kernel is not None and kernel.before(*since)


@pytest.fixture(scope="session")
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """One of the chosen kernels."""
    chosen_one: Kernel = request.param
    return chosen_one


@pytest.fixture(scope="session")
def image(kernel: Kernel, pytestconfig: pytest.Config) -> Image:
    """The image with that kernel."""
    try:
        return Builder(kernel, pytestconfig.stash[CONFINEMENT].machine_fd).image()
    except DebianError as err:  # in CI, where every test must run, this is a failure
        pytest.skip(str(err))


@pytest.fixture(scope="session")
def code_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disk with the checkout."""
    return make_code_disk(tmp_path_factory.mktemp("code"))


@pytest.fixture(scope="session")
def bare(image: Image, code_disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Bare:
    """Guests with that kernel and without anything else."""
    return Bare(image, code_disk, tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def world(image: Image, code_disk: Path) -> Iterator[VmWorld]:
    """A lab with a wire to a machine."""
    with VmWorld(image, code_disk) as made:
        yield made


@pytest.fixture(scope="session")
def installed(image: Image, code_disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disk of a machine whose plug was pulled as soon as ``bootstrap install`` had ended.

    So whatever is based on it is also a test that an installation needs no clean shutdown.
    """
    from tests.vm.installing import install_on  # noqa: PLC0415 - made by the tests of installation

    with VmWorld(image, code_disk) as world:
        vm = world.machine()
        vm.power_on()
        install_on(vm)
        vm.power_off()
        kept = tmp_path_factory.mktemp("installed") / vm.disk.name
        shutil.move(vm.disk, kept)
    return kept
