"""Guests that want a kernel and nothing else: no systemd, and no wire to the lab.

What they need they make themselves, in namespaces; see ``tests/vm/guest``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vm.image import Image
from tests.vm.vm import BARE, Vm, VmError

# The locked packages as the image has them, and the code as it lies on its disk.
PYTHON = "PYTHONPATH=/opt/site:/mnt/code PYTHONPYCACHEPREFIX=/tmp/pycache python3"


@dataclass(frozen=True, slots=True)
class Bare:
    """Boots an image for one case after the other. Files go to ``folder``."""

    image: Image
    code: Path
    folder: Path

    def run(
        self, case: str, *args: str, seconds: float, blacklist: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Boot, run a case of the guest for at most ``seconds``, and return what it found."""
        work = self.folder / case
        work.mkdir()
        vm = Vm(self.image, work, self.code, init=BARE, blacklist=blacklist)
        try:
            vm.power_on()
            script = f"{PYTHON} -m tests.vm.guest.main {' '.join((case, *args))}"
            done = vm.run(script, seconds=seconds, check=False)
        finally:
            vm.power_off()
        try:
            said: dict[str, Any] = json.loads(done.out)
        except ValueError as err:
            raise VmError(f"the guest ended with {done.status}: {done.out}{done.err}") from err
        if "failure" in said:
            raise VmError(f"{said['failure']}\nits errors:\n{done.err}")
        return said
