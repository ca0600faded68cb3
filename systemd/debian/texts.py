# ruff: noqa: INP001 - a program of the build, imported by nobody
"""The texts of the Debian package that follow from others: its changelog and its copyright file.

``texts.py changelog CHANGELOG.md VERSION MAINTAINER EPOCH`` writes the newest section as Debian
does; ``texts.py copyright SITE YEAR`` tells whose packages are in the folder SITE.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from email.message import Message
from email.parser import HeaderParser
from email.utils import formatdate
from pathlib import Path

WIDTH = 78
# Where a release is in the package; "whole text" below is looked for by people.
INSTALLED = Path("/usr/lib/ramnet/release/venv")
_HEAD = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: ramnet
Comment: The package holds ramnet and, unchanged, the Python packages that it
 needs. Each is named below with the licence that it states. On Debian systems
 common licences are in /usr/share/common-licenses as well, such as GPL-2 and
 Apache-2.0 there.

Files: *
Copyright: {year} the authors of ramnet
License: not-stated
 The sources of ramnet state no licence.
"""


def changelog(source: str, version: str, maintainer: str, epoch: int) -> Iterator[str]:
    """Give the lines of a Debian changelog with the newest section of ours."""
    yield f"ramnet ({version}) unstable; urgency=medium"
    yield ""
    newest = re.split(r"^## .*$", source, flags=re.MULTILINE)[1]
    for item in re.split(r"^- ", newest, flags=re.MULTILINE)[1:]:
        yield from textwrap.wrap(
            " ".join(item.split()),
            WIDTH,
            initial_indent="  * ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    yield ""
    yield f" -- {maintainer}  {formatdate(epoch)}"


def copyright_file(site: Path, year: str) -> Iterator[str]:
    """Give the lines of a copyright file, from what each package in ``site`` says of itself."""
    yield from _HEAD.format(year=year).splitlines()
    for file in sorted(site.glob("*.dist-info/METADATA")):
        about = HeaderParser().parsestr(file.read_text("utf-8"))
        if about["Name"] == "ramnet":
            continue
        yield ""
        yield f"Files: usr/lib/ramnet/release/venv/lib/*/{file.parent.name.partition('-')[0]}*"
        yield f"Comment: {about['Name']} {about['Version']}"
        yield f"Copyright: {_authors(about)}"
        yield f"License: {_licence(about)}"
        for text in _texts(file.parent):
            yield f" The whole text: {INSTALLED / text.relative_to(site.parents[2])}"


def _authors(about: Message) -> str:
    return about["Author"] or about["Author-email"] or f"the authors of {about['Name']}"


def _licence(about: Message) -> str:
    kinds = [
        line.rpartition(":: ")[2] for line in about.get_all("Classifier", []) if "License" in line
    ]
    said = about["License-Expression"] or about["License"] or ", ".join(kinds) or "not-stated"
    return str(said).splitlines()[0]


def _texts(folder: Path) -> list[Path]:
    wanted = re.compile(r"(licen[cs]e|copying|notice)", re.IGNORECASE)
    return sorted(path for path in folder.rglob("*") if path.is_file() and wanted.match(path.name))


def main(arguments: list[str]) -> None:
    """Write what the first argument names to standard output."""
    match arguments:
        case ["changelog", source, version, maintainer, epoch]:
            lines = changelog(Path(source).read_text("utf-8"), version, maintainer, int(epoch))
        case ["copyright", site, year]:
            lines = copyright_file(Path(site), year)
        case _:
            sys.exit(__doc__)
    sys.stdout.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    main(sys.argv[1:])
