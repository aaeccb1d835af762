"""Which image files a source names."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from stn.data.decoding import extensions
from stn.errors import InputError, user_errors


@user_errors("source")
def find_files(source: str) -> tuple[list[str], int]:
    """The files that a source names, and the number of files that are no images by their extension.

    source: a file, a glob, a folder, or - for paths on the standard input. Raises InputError for one without images.
    """
    if source == "-":
        if paths := [os.fsdecode(line) for line in sys.stdin.buffer.read().splitlines() if line]:
            return paths, 0
        raise InputError("source=-: the standard input names no files: give it one path a line")
    if source and Path(source).is_dir():
        found = files_in(source)
    elif Path(source).is_file() or not glob.has_magic(source):
        if not source or not Path(source).exists():
            raise InputError(f"source={source} does not exist: give an image, a folder, a quoted glob, or -")
        return [source], 0
    else:
        matches = glob.iglob(source, recursive=True)  # noqa: PTH207 (its paths begin as the source does)
        found = (path for path in matches if not Path(path).is_dir())
    images, others = [], 0
    for path in found:
        if path.lower().endswith(extensions()):
            images.append(path)
        else:
            others += 1
    if not images:
        raise InputError(
            f"source={source} names no file with the extension of an image, and {others:,} others: give an image, a "
            "folder, a quoted glob, or -"
        )
    return sorted(images, key=os.path.split), others


def files_in(folder: str) -> Iterator[str]:
    """The paths of all files in a folder and its subfolders, but for hidden ones."""

    def refuse(error: OSError) -> None:
        raise InputError(f"source={folder} cannot be read: {error.strerror}: {error.filename}") from error

    for where, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(where, name) for name in names if not name.startswith("."))  # noqa: PTH118


def check_apart(folder: Path, files: Iterable[str]) -> None:
    """Raises InputError if a file lies in the folder of the output, which may be emptied."""
    output = Path(os.path.realpath(folder))
    for path in files:
        where, name = os.path.split(path)
        places = os.path.realpath(path), os.path.join(os.path.realpath(where), name)  # noqa: PTH118
        if any(Path(place).is_relative_to(output) for place in places):
            raise InputError(f"{path} lies in {folder}, where the predictions are written: give another output=…")
