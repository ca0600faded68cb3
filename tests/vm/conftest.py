"""The image of the suite: made once, in the network namespace of the machine, where mirrors are."""

from __future__ import annotations

import pytest

from tests.conftest import CONFINEMENT
from tests.vm.image import SUITE, Builder, ImageError
from tests.vm.machine import Machine


@pytest.fixture(scope="session")
def machine(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    try:
        image = Builder(SUITE, pytestconfig.stash[CONFINEMENT].machine_fd).image()
    except ImageError as err:  # in CI, where every test must run, this is a failure
        pytest.skip(str(err))
    return Machine(image, tmp_path_factory.mktemp("vm"))
