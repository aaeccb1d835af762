"""Any tree of images, one folder a class: the user's own, or a copy of CIFAR-10 as JPEG files."""

import contextlib
import hashlib
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets.folder import IMG_EXTENSIONS

from stn.data.resident import ResidentDataModule

log = logging.getLogger(__name__)

LARGEST_KEPT = 2**30  # bytes


class ImageFolderDataModule(ResidentDataModule):
    """Images from `root`/train/<class>/... and `root`/test/<class>/..., as RGB (JPEG, PNG, TIFF and what else
    torchvision takes for an image).

    Images of another size than `image_size` are resized to it, with a note. What was decoded, up to 1 GiB, is kept in
    `root` as .train-<fingerprint>.pt and .test-<fingerprint>.pt for the next run, until a file changes.
    Raises OSError for a folder that is missing and ValueError for an empty class, classes that differ between train and
    test, and an image that cannot be read, whose path it names.
    """

    def __init__(self, root: str = "data", **common: Any) -> None:
        self.root = Path(root)
        class_folders(self.root / "train")  # before the base class wonders why there are no classes
        super().__init__(**common)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        folder = self.root / ("train" if train else "test")
        classes = class_folders(folder)
        if train:
            self.classes = classes
        elif classes != self.classes:
            odd = sorted(set(classes) ^ set(self.classes))
            raise ValueError(
                f"the classes of {folder} are not those of {self.root / 'train'}: only one of the two has {odd[0]!r}"
            )
        paths = [image_files(folder / name) for name in classes]
        labels = torch.tensor([label for label, files in enumerate(paths) for _ in files])
        return self._images(folder, [path for files in paths for path in files]), labels

    def _images(self, folder: Path, paths: list[str]) -> Tensor:
        """Images of files, uint8 (N, 3, H, W): as kept by an earlier run, if none has changed since; else decoded."""
        kept = self.root / f".{folder.name}-{fingerprint(folder, paths, self.image_size)}.pt"
        with contextlib.suppress(OSError):
            found: Tensor = torch.load(kept, weights_only=True)
            return found
        read, resized = decoded(paths, self.image_size)
        if resized:
            side = self.image_size
            log.info("%s: %d of %d images resized to %d x %d", folder, resized, len(paths), side, side)
        images = torch.from_numpy(read).permute(0, 3, 1, 2).contiguous()
        if images.nbytes < LARGEST_KEPT:
            keep(images, kept)
        return images


def decoded(paths: list[str], side: int) -> tuple[np.ndarray, int]:
    """The images of files, uint8 (N, side, side, 3), and how many were resized; by a process for each core.

    Where none can be forked, one after another: threads would wait for each other between small images. Raises
    ValueError for a file that is no readable image.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 0
    loader: DataLoader[str] = DataLoader(
        paths,  # type: ignore[arg-type]  # a list is a dataset: it has items and a length
        batch_size=max(1, min(100, len(paths) // (4 * cores or 1))),
        num_workers=cores,
        multiprocessing_context="fork" if cores else None,
        collate_fn=partial(decode_chunk, side),
        generator=torch.Generator(),  # else it draws from the one that the run's seed set
    )
    parts = []
    for part in loader:
        if isinstance(part, ValueError):
            raise part
        parts.append(part)
    images, resized = zip(*parts, strict=True)
    return np.concatenate(images), sum(resized)


def decode_chunk(side: int, paths: list[str]) -> tuple[np.ndarray, int] | ValueError:
    """The same of a few files, or what was wrong with one: raised, it would bring its process's traceback along."""
    try:
        images, resized = zip(*(decode(side, path) for path in paths), strict=True)
    except ValueError as error:
        return error
    return np.stack(images), sum(resized)


def decode(side: int, path: str) -> tuple[np.ndarray, bool]:
    """The image of a file, uint8 (side, side, 3), and whether it was resized. Raises ValueError where there is none."""
    try:
        with Image.open(path) as file:
            # PIL would cut off what is brighter than 255 of 65,535.
            deep = file.mode.startswith("I;16")
            image = (Image.fromarray((np.asarray(file) >> 8).astype(np.uint8)) if deep else file).convert("RGB")
    except Exception as error:  # each of PIL's decoders has its own
        raise ValueError(f"{path} is not a readable image: {error}") from error
    if image.size == (side, side):
        return np.asarray(image), False
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)), True


def fingerprint(folder: Path, paths: list[str], image_size: int) -> str:
    """A name for what files of a folder hold: another one when a file is added, removed, renamed or written."""
    digest = hashlib.sha256(str(image_size).encode())
    for path in paths:
        status = os.stat(path)  # noqa: PTH116 (a Path of each of 60,000 costs a second)
        digest.update(f"{path.removeprefix(str(folder))} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def keep(images: Tensor, path: Path) -> None:
    """Saves decoded images for the next run, in place of earlier ones; where the folder is read-only, it does not."""
    split = path.name.partition("-")[0]
    part = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError, RuntimeError):  # torch.save raises either
        torch.save(images, part)
        part.replace(path)  # whole or not at all
        for old in path.parent.glob(f"{split}-*.pt"):
            if old != path:
                old.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        part.unlink(missing_ok=True)


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders in `folder`, sorted. Raises OSError or ValueError when there are none."""
    if not folder.is_dir():
        raise NotADirectoryError(
            f"{folder} is not a folder: data.root must hold train/<class>/<image> and test/<class>/<image>"
        )
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise ValueError(f"{folder} has no class folders: it must hold <class>/<image>")
    return classes


def image_files(folder: Path) -> list[str]:
    """Image files below a class's folder, sorted. Raises ValueError when there are none."""
    every = ((where, name) for where, _, names in os.walk(folder) for name in names if not name.startswith("."))
    files = sorted(f"{where}{os.sep}{name}" for where, name in every if name.lower().endswith(IMG_EXTENSIONS))
    if not files:
        raise ValueError(f"the class folder {folder} is empty: it must hold images ({' '.join(IMG_EXTENSIONS)})")
    return files
