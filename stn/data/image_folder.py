"""Any tree of images, one folder for each class: the user's own, or CIFAR-10 as files."""

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
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from stn.data.resident import ResidentDataModule

log = logging.getLogger(__name__)

LARGEST_KEPT = 2**30  # bytes
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # PIL's names


class ImageFolderDataModule(ResidentDataModule):
    """Images from `root`/train/<class>/... and `root`/test/<class>/..., in the formats that torchvision takes.

    channels: 1 for grey, 2 for grey and transparency, 3 for RGB, 4 for RGBA; every image is converted.
    Images of another size are resized to `image_size`, whatever their shape; the log says how many. The decoded
    images, up to 1 GiB, are kept in `root` as .train-<fingerprint>.pt and .test-<fingerprint>.pt. The next run takes
    them, unless a file, the size or the channels have changed.
    Raises OSError for a missing folder, and ValueError for an empty class, classes that differ between train and test,
    or a file that cannot be read as an image; each names the path.
    """

    def __init__(self, root: str = "data", **common: Any) -> None:
        self.root = Path(root)
        # train/ may be missing: a test needs only test/.
        first = next((split for split in ("train", "test") if (self.root / split).is_dir()), "train")
        self.classes = class_folders(self.root / first)
        super().__init__(**common)
        if self.channels not in MODES:
            raise ValueError(f"channels must be one of {', '.join(map(str, MODES))} for image files")

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        folder = self.root / ("train" if train else "test")
        odd = sorted(set(class_folders(folder)) ^ set(self.classes))
        if odd:
            raise ValueError(
                f"the classes of {folder} are not those of {self.root / 'train'}: only one of the two has {odd[0]!r}"
            )
        index = {name: label for label, name in enumerate(self.classes)}
        found = make_dataset(folder, index, is_valid_file=is_image, allow_empty=True)
        empty = set(index.values()) - {label for _, label in found}
        if empty:
            raise ValueError(
                f"the class folder {folder / self.classes[min(empty)]} is empty: it must hold images "
                f"({' '.join(IMG_EXTENSIONS)})"
            )
        return self._images(folder, [path for path, _ in found]), torch.tensor([label for _, label in found])

    def _images(self, folder: Path, paths: list[str]) -> Tensor:
        """The images of files, uint8 (N, C, H, W), as an earlier run kept them or decoded now."""
        mode = MODES[self.channels]
        kept = self.root / f".{folder.name}-{fingerprint(folder, paths, mode, self.image_size)}.pt"
        with contextlib.suppress(OSError):
            found: Tensor = torch.load(kept, weights_only=True)
            return found
        read, resized = decode_files(paths, mode, self.image_size)
        if resized:
            side = self.image_size
            log.warning("%s: %d of %d images resized to %d x %d", folder, resized, len(paths), side, side)
        images = torch.from_numpy(read).permute(0, 3, 1, 2).contiguous()
        if images.nbytes < LARGEST_KEPT:
            keep(images, kept)
        return images


def decode_files(paths: list[str], mode: str, side: int) -> tuple[np.ndarray, int]:
    """Decodes files with a process for each core: uint8 (N, side, side, C), and how many were resized.

    Without fork, this process decodes them: with small images, threads spend their time waiting for each other.
    A DataLoader ends quietly on Ctrl-C, unlike a pool of processes.
    Raises ValueError for a file that is not a readable image.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 0
    loader: DataLoader[str] = DataLoader(
        paths,  # type: ignore[arg-type]  # a list is a dataset: it has items and a length
        batch_size=max(1, min(100, len(paths) // (4 * cores or 1))),
        num_workers=cores,
        multiprocessing_context="fork" if cores else None,
        collate_fn=partial(decode_chunk, mode, side),
        generator=torch.Generator(),  # the default one is the run's, which must not depend on decoding
    )
    parts = []
    for part in loader:
        if isinstance(part, ValueError):
            raise part
        parts.append(part)
    images, resized = zip(*parts, strict=True)
    return np.concatenate(images), sum(resized)


def decode_chunk(mode: str, side: int, paths: list[str]) -> tuple[np.ndarray, int] | ValueError:
    """Decodes some files in this process. Returns an error instead of raising it, which would print a traceback."""
    try:
        images, resized = zip(*(decode(mode, side, path) for path in paths), strict=True)
    except ValueError as error:
        return error
    return np.stack(images), sum(resized)


def decode(mode: str, side: int, path: str) -> tuple[np.ndarray, bool]:
    """The image of a file, uint8 (side, side, C), and whether it was resized. Raises ValueError if it is no image."""
    try:
        with Image.open(path) as file:
            # PIL's own conversion clips all values above 255.
            is_16_bit = file.mode.startswith("I;16")
            image = Image.fromarray((np.asarray(file) >> 8).astype(np.uint8)) if is_16_bit else file
            image = image.convert(mode)
    except Exception as error:  # each of PIL's decoders has its own
        raise ValueError(f"{path} is not a readable image: {error}") from error
    resized = image.size != (side, side)
    if resized:
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(side, side, -1), resized


def fingerprint(folder: Path, paths: list[str], mode: str, image_size: int) -> str:
    """A name for the decoded images; it changes when a file is added, removed, renamed or written."""
    digest = hashlib.sha256(f"{mode} {image_size}\n".encode())
    for path in paths:
        status = os.stat(path)  # noqa: PTH116 (60,000 Path objects take a second)
        digest.update(f"{path.removeprefix(str(folder))} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def keep(images: Tensor, path: Path) -> None:
    """Saves decoded images for the next run and deletes earlier ones. Does nothing in a read-only folder."""
    split = path.name.partition("-")[0]
    part = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError, RuntimeError):  # torch.save raises either
        torch.save(images, part)
        part.replace(path)  # never a half-written file
        for old in path.parent.glob(f"{split}-*.pt"):
            if old != path:
                old.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        part.unlink(missing_ok=True)


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders in `folder`, sorted. Raises OSError or ValueError if there are none."""
    if not folder.is_dir():
        raise NotADirectoryError(
            f"{folder} is not a folder: data.root must hold train/<class>/<image> and test/<class>/<image>"
        )
    with contextlib.suppress(FileNotFoundError):  # torchvision raises it if there are none
        if classes := [name for name in find_classes(folder)[0] if not name.startswith(".")]:
            return classes
    raise ValueError(f"{folder} has no class folders: it must hold <class>/<image>")


def is_image(path: str) -> bool:
    """Whether a file counts as an image: by its extension, unless it is hidden."""
    return path.lower().endswith(IMG_EXTENSIONS) and not os.path.basename(path).startswith(".")  # noqa: PTH119
