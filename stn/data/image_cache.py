"""Decoded images, kept as files in a folder of the user's for the next run."""

import contextlib
import hashlib
import logging
import os
import tempfile
from pathlib import Path

import PIL
import torch
from torch import Tensor

log = logging.getLogger(__name__)

DECODER = f"1 {PIL.__version__}"  # raise the number whenever `decode` gives other pixels for a file
PREFIX = "decoded-"
LARGEST_KEPT = 2**30  # bytes, of one file
LARGEST_CACHE = 4 * 2**30  # bytes, of all files


def fingerprint(folder: Path, files: dict[str, os.stat_result], channels: int, side: int) -> str:
    """A name for the decoded images of `folder`; it changes when a file is added, removed, renamed or written.

    files: the status of each path, in order.
    """
    digest = hashlib.sha256(f"{DECODER} {channels} {side}\0".encode())
    digest.update(os.fsencode(folder.resolve()))
    for path, status in files.items():
        # The time of the last change of the status, too: a copy may bring its old time of writing.
        marks = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        digest.update(b"\0%b\0%b" % (os.fsencode(path.removeprefix(str(folder))), marks.encode()))
    return digest.hexdigest()[:32]


def recall(cache: Path, name: str, shape: tuple[int, ...]) -> Tensor | None:
    """The images that an earlier run kept under a name, uint8 of `shape`; None if there are none, or they are damaged.

    The file counts as used now, see `keep`.
    """
    path = cache / f"{PREFIX}{name}.pt"
    try:
        if not path.is_file():  # a pipe would keep us waiting
            return None
        # Mapped: whatever the file declares, no memory is taken before the checks.
        kept = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        images = kept["images"]
        if (type(images), images.dtype, images.shape) != (Tensor, torch.uint8, shape) or not images.is_contiguous():
            return None
        images = images.clone()
        if kept["digest"] != digest_of(images, name):
            return None
    except Exception:  # zipfile, pickle, torch and the file system have different ones
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return images


def keep(images: Tensor, cache: Path, name: str) -> None:
    """Keeps images (N, C, H, W) under a name, and removes the files of the cache that were not used for longest.

    Together they take `LARGEST_CACHE` bytes at most. The log tells if the folder cannot be written.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, prefix=PREFIX, suffix=".part", delete=False) as part:
            written = Path(part.name)
        try:
            torch.save({"images": images, "digest": digest_of(images, name)}, written)
            written.replace(cache / f"{PREFIX}{name}.pt")  # never a half-written file
        finally:
            written.unlink(missing_ok=True)
        trim(cache)
    except (OSError, RuntimeError) as error:  # torch.save raises either
        why = str(error).partition("\n")[0]
        log.warning("the decoded images cannot be kept in %s (%s): set another data.cache, or null", cache, why)


def trim(cache: Path) -> None:
    """Removes the files that were not used for longest, down to `LARGEST_CACHE` bytes."""
    names = (PREFIX + 32 * "[0-9a-f]" + ".pt", PREFIX + 8 * "?" + ".part")  # and no file of anybody else's
    files = [(path, path.stat()) for name in names for path in cache.glob(name)]
    total = 0
    for path, status in sorted(files, key=lambda file: file[1].st_mtime_ns, reverse=True):
        total += status.st_size
        if total > LARGEST_CACHE:
            path.unlink(missing_ok=True)


def digest_of(images: Tensor, name: str) -> str:
    """A digest of the pixels and the name that they are kept under."""
    digest = hashlib.sha256(name.encode())
    digest.update(images.numpy().data)  # 0.09 s for CIFAR-10
    return digest.hexdigest()
