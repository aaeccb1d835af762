"""CIFAR-10 (Krizhevsky 2009), as torchvision reads and downloads it."""

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10

from stn.data.resident import ResidentDataModule
from stn.process import locked


class CIFAR10DataModule(ResidentDataModule):
    """CIFAR-10: 50,000 + 10,000 images of 32 x 32, 10 classes.

    root: the folder of the files, which are downloaded there on first use.
    """

    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def __init__(self, root: str = "data", **common: Any) -> None:
        super().__init__(**common)
        self.root = Path(os.path.expanduser(root))  # noqa: PTH111 (Path's raises an error for ~name)

    def prepare_data(self) -> None:
        """Downloads the files if they are missing. Raises OSError if it cannot; the message says where to put them."""
        if self.images:
            return
        if self.root.is_file():
            raise NotADirectoryError(f"data.root={self.root} is a file, not a folder")
        with contextlib.suppress(RuntimeError):  # raised if it is not there
            CIFAR10(self.root, train=True)
            return
        try:
            with locked(self.root):  # of several processes one downloads
                CIFAR10(self.root, train=True, download=True)
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"CIFAR-10 is not in {self.root.resolve()} and could not be downloaded ({error}): put the folder "
                f"{CIFAR10.base_folder} or {CIFAR10.filename} there, or train with data=shapes, which needs no files, "
                "or with data=image_folder data.root=<your images>"
            ) from error

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        data = CIFAR10(self.root, train=train)
        return torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)
