"""Any tree of images, one folder for each class: the user's own, or CIFAR-10 as files."""

import contextlib
import hashlib
import logging
import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets.folder import find_classes

from stn.data.decoding import MODES, decode_files, extensions, listed
from stn.data.image_cache import LARGEST_KEPT, fingerprint, keep, recall
from stn.data.resident import ResidentDataModule
from stn.process import locked

log = logging.getLogger(__name__)


class ImageFolderDataModule(ResidentDataModule):
    """Images from `root`/train/<class>/... and `root`/test/<class>/..., in the formats that PIL decodes.

    root: the folder that holds train/<class>/<image> and test/<class>/<image>, or <class>/<image> with `test_fraction`.
    test_fraction: about the share of the images of each class that are the test set, where `root` has neither train/
        nor test/. Which ones follows from their names and `split_seed`, so that more images change nothing. With 1 all
        are for testing.
    channels: 1 for grey, 2 for grey and transparency, 3 for RGB, 4 for RGBA; every image is converted. With 1 and 3,
        transparent pixels become mid-grey.
    cache: the folder where decoded images are kept for the next run, 4 GiB at most; None to keep none.
    group: a text, such as "_"; images of a class whose names are equal up to its last place belong together, as the
        frames of a track. They are held out together, or not at all. None: each on its own.
    follow_links: whether links that lead out of `root` are followed.
    A set of more than 1 GiB is not kept. Kept images are decoded anew when a file, the size, the channels or the
    decoder have changed. The files that were not used for longest are removed; the cache may be emptied at any time.
    Nothing is written to `root`. Images of another size are resized to `image_size`, whatever their shape; the log says
    how many. It also says which files are no images, by their extension; hidden files and folders are left out.
    Raises OSError for a missing folder, and ValueError for fewer than two classes, an empty one, classes that differ
    between train and test, a file that cannot be read as an image, more images than fit into memory, or too few to
    split; each names the path.
    """

    def __init__(
        self,
        root: str = "data",
        test_fraction: float | None = None,
        cache: str | None = None,
        group: str | None = None,
        follow_links: bool = False,
        **common: Any,
    ) -> None:
        self.root = Path(os.path.expanduser(root))  # noqa: PTH111 (Path's raises an error for ~name)
        self.cache = Path(os.path.expanduser(cache)) if cache else None  # noqa: PTH111
        self.follow_links = follow_links
        self.group = group
        self.test_fraction = test_fraction
        # train/ may be missing: a test needs only test/.
        splits = [split for split in ("train", "test") if (self.root / split).is_dir()]
        if test_fraction is not None:
            if not 0 < test_fraction <= 1:
                raise ValueError(f"test_fraction must be above 0 and at most 1, or null, not {test_fraction}")
            if splits or group:
                why = f"{self.root / splits[0]} is there" if splits else f"group={group} is given"
                raise ValueError(f"test_fraction={test_fraction} must be null: {why}")
            check_folder(self.root)
            self.classes = class_folders(self.root)
        else:
            check_split(self.root, splits)
            self.classes = class_folders(self.root / splits[0])
        super().__init__(**common)
        if self.channels not in MODES:
            raise ValueError(f"channels must be one of {', '.join(map(str, MODES))} for image files")

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        folder = self.root if self.test_fraction else self.root / ("train" if train else "test")
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is not a folder: data.root must hold {folder.name}/<class>/<image>")
        allowed = None if self.follow_links else os.path.realpath(self.root)
        check_link(str(folder), allowed)
        check_classes(self.root)
        if len(self.classes) < 2:
            name = self.classes[0]
            raise ValueError(f"{folder} has one class folder, {name}, not two or more: is data.root a level too high?")
        files: dict[str, os.stat_result] = {}
        labels: list[int] = []
        others: list[str] = []
        for label, name in enumerate(self.classes):
            found, more = image_files(str(folder / name), allowed)
            if not found:
                raise ValueError(
                    f"the class folder {folder / name} is empty: it must hold images, such as .jpg, .png, .tif or .gif"
                )
            if self.test_fraction:
                found = self._part(folder / name, found, train)
            files |= found
            labels += [label] * len(found)
            others += more
        if others and (train or not self.test_fraction):  # which reads the same folders twice
            are = "files are no images" if len(others) > 1 else "file is no image"
            log.warning("%s: %d %s: %s", folder, len(others), are, listed(list(map(repr, others))))
        if train and self.group:
            self.groups = groups_of(list(files), self.group)
        return self._images(folder, files), torch.tensor(labels)

    def _part(self, folder: Path, files: dict[str, os.stat_result], train: bool) -> dict[str, os.stat_result]:
        """The training or the test images among the files of a class."""
        assert self.test_fraction is not None
        places = {path: place_of(os.path.relpath(path, folder), self.split_seed) for path in files}
        ordered = sorted(files, key=places.__getitem__)
        first, last = ordered[0], ordered[-1]
        tested = {path for path in files if places[path] < self.test_fraction or path == first}
        if self.test_fraction < 1:
            tested.discard(last)
        if not tested or (train and len(tested) == len(files)):
            raise ValueError(
                f"{folder} has {len(files)} image{'s' * (len(files) > 1)}, too few to train and to test on with "
                f"test_fraction={self.test_fraction}"
            )
        return {path: status for path, status in files.items() if (path in tested) != train}

    def _images(self, folder: Path, files: dict[str, os.stat_result]) -> Tensor:
        """The images of files, uint8 (N, C, H, W), as an earlier run kept them or decoded now."""
        side = self.image_size
        name = fingerprint(folder, files, self.channels, side)
        shape = (len(files), self.channels, side, side)
        if self.cache is None or math.prod(shape) >= LARGEST_KEPT:
            return self._decode(folder, files)
        kept = recall(self.cache, name, shape)
        if kept is None:
            with locked(self.cache):  # of several processes one decodes, and the others take what it keeps
                kept = recall(self.cache, name, shape)
                if kept is None:
                    kept = self._decode(folder, files)
                    keep(kept, self.cache, name)
        return kept

    def _decode(self, folder: Path, files: dict[str, os.stat_result]) -> Tensor:
        side = self.image_size
        images, resized = decode_files(list(files), self.channels, side)
        if resized:
            log.warning("%s: %d of %d images resized to %d x %d", folder, resized, len(files), side, side)
        return images


def groups_of(paths: Sequence[str], separator: str) -> Tensor:
    """Numbers, from 0, of the groups of files: those of a folder that are named alike up to the last separator, (N,).

    Raises ValueError for a name without it.
    """
    numbers: dict[tuple[str, str], int] = {}
    found = []
    for path in paths:
        folder, name = os.path.split(path)
        group, separated, _ = name.rpartition(separator)
        if not separated:
            raise ValueError(f"group={separator} is not in the name of {path}: each name must begin with its group")
        found.append(numbers.setdefault((folder, group), len(numbers)))
    return torch.tensor(found)


def place_of(name: str, seed: int) -> float:
    """A number in [0, 1) that follows from the name of a file and a seed, and is evenly distributed."""
    digest = hashlib.blake2b(f"{seed} ".encode() + os.fsencode(name), digest_size=6).digest()
    return int.from_bytes(digest) / 2**48


def check_folder(root: Path) -> None:
    """Raises OSError for what is no folder."""
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a folder: set data.root to the folder of the images")


def check_split(root: Path, splits: Sequence[str]) -> None:
    """Raises OSError for a folder without train/ and test/."""
    check_folder(root)
    if not splits:
        said = f"{root / 'train'} is not a folder: data.root must hold train/<class>/<image> and test/<class>/<image>"
        if any(entry.is_dir() and not entry.name.startswith(".") for entry in root.iterdir()):
            said += f"; if it holds <class>/<image>, set data.test_fraction=0.2, and a fifth of {root} is the test set"
        raise NotADirectoryError(said)


def check_classes(root: Path) -> None:
    """Raises ValueError if train/ and test/ are there and their classes differ."""
    folders = [root / split for split in ("train", "test")]
    if not all(map(Path.is_dir, folders)):
        return
    train, test = (set(class_folders(folder)) for folder in folders)
    for folder, lacks, more in ((folders[1], train - test, test - train), (folders[0], test - train, train - test)):
        if lacks:
            has = f" and has {min(more)!r}" if more else ""
            raise ValueError(f"the classes of {folder} are others: it lacks {min(lacks)!r}{has}")


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders in `folder`, sorted.

    Raises OSError or ValueError if there are none, or if one has a name that is no text.
    """
    with contextlib.suppress(FileNotFoundError):  # torchvision raises it if there are none
        if classes := [name for name in find_classes(folder)[0] if not name.startswith(".")]:
            for name in classes:
                if os.fsencode(name) != name.encode(errors="replace"):  # on Linux a name is any bytes
                    raise ValueError(f"{folder} has a class folder whose name is no text, {name!r}: rename it")
            return classes
    raise ValueError(f"{folder} has no class folders: it must hold <class>/<image>")


def image_files(folder: str, allowed: str | None) -> tuple[dict[str, os.stat_result], list[str]]:
    """The images in a folder and its subfolders with their status, in order, and the names of the other files.

    A subfolder to which several links lead counts once. allowed: see `check_link`.
    Raises ValueError for an image that is no regular file, and OSError for what cannot be read.
    """
    check_link(folder, allowed)
    images: dict[str, os.stat_result] = {}
    others: list[str] = []
    left = [folder]
    seen = {os.path.realpath(folder)}
    while left:
        with os.scandir(left.pop()) as entries:
            visible = sorted(
                (entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name
            )
        for entry in visible:
            is_image = entry.name.lower().endswith(extensions())
            if not is_image and not entry.is_dir():
                others.append(entry.name)
                continue
            if entry.is_symlink():
                check_link(entry.path, allowed)
            status = entry.stat()
            if not is_image:
                where = os.path.realpath(entry.path)
                if where not in seen:
                    seen.add(where)
                    left.append(entry.path)
            elif stat.S_ISREG(status.st_mode):
                images[entry.path] = status
            else:
                raise ValueError(f"{entry.path} is named as an image, but it is no regular file: remove or rename it")
    return {path: images[path] for path in sorted(images, key=os.path.split)}, sorted(others)


def check_link(path: str, allowed: str | None) -> None:
    """Raises ValueError if a path is a link to a folder that it lies in, to nothing, or out of the folder `allowed`."""
    if not os.path.islink(path):  # noqa: PTH114 (60,000 Path objects take a second)
        return
    target = Path(os.path.realpath(path))
    if not target.exists():
        raise ValueError(f"{path} is a link that leads nowhere: remove it")
    if Path(os.path.realpath(os.path.dirname(path))).is_relative_to(target):  # noqa: PTH120
        raise ValueError(f"{path} is a link to a folder that it lies in: remove it")
    if allowed and not target.is_relative_to(allowed):
        raise ValueError(f"{path} is a link out of data.root, to {target}: set data.follow_links=true to follow it")
