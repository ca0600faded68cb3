"""The store: what was written is read, whatever happened to the files and the disk in between."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramnet.core.activity import Record, Verdict
from ramnet.errors import HostError
from ramnet.host.activity import MAX_LINE, OLD_FILES, Reader, Store, store_path

NOON = 1_800_000_000.0
# So small that a few records fill a file.
SMALL = 2_000
NOBODY = 65534
ROOT = Path(__file__).resolve().parents[3]


def record(number: int) -> Record:
    return Record(Verdict.DENIED, NOON, NOON, name=f"r{number}.example", why="x")


def records(*numbers: int) -> list[Record]:
    return [record(number) for number in numbers]


def numbers(found: Iterator[Record]) -> list[int]:
    return [int(one.name[1:].partition(".")[0]) for one in found]


def read(folder: Path) -> list[int]:
    with Reader(str(folder)) as reader:
        return numbers(reader.read())


def test_what_was_written_is_read_in_order(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.append(records(1, 2))
    store.append([])
    Store(str(tmp_path)).append(records(3))
    with Reader(str(tmp_path)) as reader:
        assert list(reader.read()) == records(1, 2, 3)


def test_a_store_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path / "gone") == []


def test_it_is_for_root_alone(tmp_path: Path) -> None:
    os.umask(os.umask(0o022))
    Store(str(tmp_path)).append(records(1))
    path = store_path(str(tmp_path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_whoever_may_not_read_it_is_told() -> None:
    code = (
        "import os, sys\n"
        "from ramnet.host.activity import Reader\n"
        f"os.setuid({NOBODY})\n"
        "with Reader(sys.argv[1]) as reader:\n"
        "    try: print(len(list(reader.read())))\n"
        "    except PermissionError: print('refused')\n"
    )
    # Not below the folder of pytest, into which nobody else may look.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        Store(folder).append(records(1))
        command = [sys.executable, "-c", code, folder]
        said = [subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)]
        store_path(folder).chmod(0o644)
        store_path(folder).parent.chmod(0o755)
        said += [subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)]
    assert [one.stdout for one in said] == ["refused\n", "1\n"]


# Rotation


def test_files_rotate_and_the_oldest_is_dropped(tmp_path: Path) -> None:
    store = Store(str(tmp_path), SMALL)
    for number in range(100):
        store.append(records(number))
    path = store_path(str(tmp_path))
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == [
        path.name,
        *(f"{path.name}.{n}" for n in range(1, OLD_FILES + 1)),
    ]
    assert all(file.stat().st_size <= SMALL for file in files)
    found = read(tmp_path)
    assert found == list(range(found[0], 100)), "merged in order, and without a gap"
    assert 0 < found[0] < 95


def test_a_batch_that_is_larger_than_a_file_is_written_whole(tmp_path: Path) -> None:
    store = Store(str(tmp_path), SMALL)
    store.append(records(*range(20)))
    store.append(records(20))
    assert read(tmp_path) == list(range(21))


def test_following_over_rotations(tmp_path: Path) -> None:
    store = Store(str(tmp_path), SMALL)
    store.append(records(0))
    with Reader(str(tmp_path)) as reader:
        assert numbers(reader.read()) == [0]
        assert numbers(reader.read()) == []
        for number in range(1, 40):
            store.append(records(number))
            if number % 3 == 0:  # now and then two rotations lie between two looks
                assert numbers(reader.read()) == [number - 2, number - 1, number]
        store.append(records(*range(40, 50)))
        store.append(records(*range(50, 60)))
        assert numbers(reader.read()) == list(range(40, 60))
        assert len(os.listdir("/proc/self/fd")) < 40  # noqa: PTH208 - a count


def test_following_begins_before_there_is_a_store(tmp_path: Path) -> None:
    with Reader(str(tmp_path)) as reader:
        assert numbers(reader.read()) == []
        Store(str(tmp_path)).append(records(1))
        assert numbers(reader.read()) == [1]


def test_following_goes_on_when_the_files_were_removed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.append(records(1))
    with Reader(str(tmp_path)) as reader:
        assert numbers(reader.read()) == [1]
        store_path(str(tmp_path)).unlink()
        assert numbers(reader.read()) == []
        store.append(records(2))
        assert numbers(reader.read()) == [2]


def test_a_line_is_followed_when_it_is_whole(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.append(records(1, 2))
    path = store_path(str(tmp_path))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with Reader(str(tmp_path)) as reader:
        assert numbers(reader.read()) == [1]
        with path.open("ab") as file:
            file.write(whole[-20:])
        assert numbers(reader.read()) == [2]


# Trouble


@pytest.mark.parametrize("cut", [1, 30])
def test_a_line_that_was_cut_off_harms_no_other(tmp_path: Path, cut: int) -> None:
    store = Store(str(tmp_path))
    store.append(records(1, 2))
    path = store_path(str(tmp_path))
    os.truncate(path, path.stat().st_size - cut)
    store.append(records(3))
    assert read(tmp_path) == ([1, 2, 3] if cut == 1 else [1, 3])


@pytest.mark.parametrize(
    "garbage",
    [
        b"\n\n",
        b"{}\n",
        b"null\n",
        b"\xff\xfe\n",
        b"[" * 20_000 + b"\n",
        b"\0" * 5_000 + b"\n",
        b"x" * (3 * MAX_LINE) + b"\n",
        b'{"schema":1}\n',
        b'{"schema":1,"verdict":"denied","time":"' + b"9" * 5_000 + b'"}\n',
    ],
)
def test_garbage_between_lines_is_passed_over(tmp_path: Path, garbage: bytes) -> None:
    store = Store(str(tmp_path))
    store.append(records(1))
    with store_path(str(tmp_path)).open("ab") as file:
        file.write(garbage)
    store.append(records(2))
    assert read(tmp_path) == [1, 2]


# Run in a mount namespace of its own, on a disk of 16 KiB at FOLDER.
_ON_A_SMALL_DISK = """
import subprocess, sys
from pathlib import Path
from ramnet.core.activity import Record, Verdict
from ramnet.errors import HostError
from ramnet.host.activity import Reader, Store

folder = Path(sys.argv[1])
store = Store(str(folder))

def mount(*options):
    subprocess.run(["mount", *options, str(folder)], check=True)

def append(*numbers):
    try:
        store.append(Record(Verdict.DENIED, 1.8e9, 1.8e9, name=f"r{n}.example") for n in numbers)
    except HostError as err:
        print(err.message)

def fill(path):
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 1_000)
        except OSError:
            pass

def show():
    with Reader(str(folder)) as reader:
        print(*(int(one.name[1:].partition(".")[0]) for one in reader.read()))

mount("-t", "tmpfs", "-o", "size=16k", "tmpfs")
append(1)
"""


def on_a_small_disk(folder: Path, code: str) -> list[str]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    own = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c"]
    said = subprocess.run(
        [*own, _ON_A_SMALL_DISK + code, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return said.stdout.splitlines()


def test_a_full_disk_is_told_and_goes_by(tmp_path: Path) -> None:
    code = """
filler = folder / "filler"
fill(filler)
append(*range(2, 40))
filler.unlink()
append(40)
show()
"""
    problem, shown = on_a_small_disk(tmp_path, code)
    path = store_path(str(tmp_path))
    assert problem == f"{path} cannot be written: No space left on device"
    found = [int(word) for word in shown.split()]
    assert found == [1, *range(2, found[-2] + 1), 40], "what was cut off harms no other"
    assert len(found) < 40


def test_a_read_only_folder_is_told_and_goes_by(tmp_path: Path) -> None:
    code = """
mount("-o", "remount,ro")
append(2)
show()
mount("-o", "remount,rw")
append(3)
show()
"""
    problem, *shown = on_a_small_disk(tmp_path, code)
    assert problem.endswith("cannot be written: Read-only file system")
    assert shown == ["1", "1 3"]


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    path = store_path(str(tmp_path))
    path.parent.mkdir()
    other = tmp_path / "other"
    other.write_text("mine")
    path.symlink_to(other)
    with pytest.raises(HostError, match="cannot be written"):
        Store(str(tmp_path)).append(records(1))
    assert other.read_text() == "mine"


def test_what_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "activity").write_text("in the way")
    with pytest.raises(HostError, match="cannot be written"):
        Store(str(tmp_path)).append(records(1))
    with pytest.raises(HostError, match="cannot be read"):
        read(tmp_path)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count
    store = Store(str(tmp_path), SMALL)
    for number in range(50):
        store.append(records(number))
        read(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
