"""CIFAR-10 and MNIST, as torchvision reads and downloads them."""

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, MNIST

from stn.data.resident import ResidentDataModule
from stn.process import locked


class TorchvisionDataModule(ResidentDataModule):
    """A data set of torchvision's, read from `root`, where it is downloaded on first use.

    name: of the data set. files: what must be in `root`, as an error says it. source: its class in torchvision.
    """

    name: str
    files: str
    source: type[CIFAR10] | type[MNIST]

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
            self.source(self.root, train=True)
            return
        try:
            with locked(self.root):  # of several processes one downloads
                self.source(self.root, train=True, download=True)
        except (OSError, RuntimeError) as error:
            why = " ".join(str(error).split())
            raise OSError(
                f"{self.name} is not in {self.root.resolve()} and could not be downloaded ({why}): put {self.files} "
                "there, or train with data=shapes, which needs no files, or with data=image_folder "
                "data.root=<your images>"
            ) from error


class CIFAR10DataModule(TorchvisionDataModule):
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 images of 32 x 32, 10 classes.

    root: the folder of the files, which are downloaded there on first use.
    """

    name, source = "CIFAR-10", CIFAR10
    files = f"the folder {CIFAR10.base_folder} or {CIFAR10.filename}"
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        data = CIFAR10(self.root, train=train)
        return torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)


class MNISTDataModule(TorchvisionDataModule):
    """MNIST (LeCun et al. 1998): 60,000 + 10,000 digits of 28 x 28, bright on black.

    root: the folder of the files, which are downloaded there on first use.
    """

    name, source = "MNIST", MNIST
    files = "the folder MNIST/raw"
    classes = tuple("0123456789")

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        data = MNIST(self.root, train=train)
        return data.data[:, None].contiguous(), data.targets
