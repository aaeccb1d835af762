"""Any tree of images, one folder for each class: the user's own, or CIFAR-10 as files."""

import contextlib
import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets.folder import find_classes

from stn.data.decoding import MODES, NAMED, decode_files, extensions
from stn.data.image_cache import fingerprint, keep, recall
from stn.data.resident import ResidentDataModule
from stn.process import locked

log = logging.getLogger(__name__)


class ImageFolderDataModule(ResidentDataModule):
    """Images from `root`/train/<class>/... and `root`/test/<class>/..., in the formats that PIL decodes.

    root: the folder that holds train/<class>/<image> and test/<class>/<image>.
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
    Raises OSError for a missing folder, and ValueError for an empty class, classes that differ between train and test,
    a file that cannot be read as an image, or more images than fit into memory; each names the path.
    """

    def __init__(
        self,
        root: str = "data",
        cache: str | None = None,
        group: str | None = None,
        follow_links: bool = False,
        **common: Any,
    ) -> None:
        self.root = Path(os.path.expanduser(root))  # noqa: PTH111 (Path's raises an error for ~name)
        self.cache = Path(os.path.expanduser(cache)) if cache else None  # noqa: PTH111
        self.follow_links = follow_links
        self.group = group
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
        allowed = None if self.follow_links else os.path.realpath(self.root)
        check_link(str(folder), allowed)
        files: dict[str, os.stat_result] = {}
        labels: list[int] = []
        others: list[str] = []
        for label, name in enumerate(self.classes):
            found, more = image_files(str(folder / name), allowed)
            if not found:
                raise ValueError(
                    f"the class folder {folder / name} is empty: it must hold images, such as .jpg, .png, .tif or .gif"
                )
            files |= found
            labels += [label] * len(found)
            others += more
        if others:
            names = ", ".join([*map(repr, others[:NAMED]), *["…"] * (len(others) > NAMED)])
            are = "files are no images" if len(others) > 1 else "file is no image"
            log.warning("%s: %d %s: %s", folder, len(others), are, names)
        if train and self.group:
            self.groups = groups_of(list(files), self.group)
        return self._images(folder, files), torch.tensor(labels)

    def _images(self, folder: Path, files: dict[str, os.stat_result]) -> Tensor:
        """The images of files, uint8 (N, C, H, W), as an earlier run kept them or decoded now."""
        side = self.image_size
        name = fingerprint(folder, files, self.channels, side)
        shape = (len(files), self.channels, side, side)
        if self.cache is None:
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
