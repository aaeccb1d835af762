"""What every data set of this project shares: it is read once, lives in memory as uint8, and gives whole batches."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchvision.transforms.functional import resize

from stn.data.batches import Augmentation, Batches

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


class ResidentDataModule(pl.LightningDataModule, ABC):
    """Training, validation and test batches from images held in memory, on the device the trainer uses.

    num_classes, image_size: what the network is built for; images of another size are resized, another number of
    classes is an error. mean, std: of each channel, for values in [0, 1]. batch_size: for training, of each process.
    eval_batch_size: for validation and test. val_fraction: the part of the training set held out to validate on,
    drawn by `split_seed` (which also draws a set that the program makes). validate_on: "held_out", or "test" to train
    on the whole training set and score the test set each epoch, as published logs often do. flip, shift, cutout,
    cutmix: see `Augmentation`.
    Raises ValueError for values out of range.

    `images`, `labels` and, where the poses are known, `corners` hold "train", "val" and "test" after `setup`: uint8
    (N, 3, H, W), int64 (N,), and where in each image the corners of its upright figure lie, (N, 4, 2), as in
    `pose_error`.
    """

    classes: list[str]

    def __init__(
        self,
        num_classes: int = 10,
        image_size: int = 32,
        batch_size: int = 256,
        eval_batch_size: int = 1000,
        mean: Sequence[float] = CIFAR10_MEAN,
        std: Sequence[float] = CIFAR10_STD,
        flip: bool = False,
        shift: int = 0,
        cutout: int = 0,
        cutmix: float = 0.0,
        val_fraction: float = 0.05,
        validate_on: Literal["held_out", "test"] = "held_out",
        split_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in {"num_classes": num_classes, "image_size": image_size, "batch_size": batch_size}.items():
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, not {value}")
        if eval_batch_size < 1:
            raise ValueError(f"eval_batch_size must be 1 or more, not {eval_batch_size}")
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must lie between 0 and 1, not {val_fraction}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std must be 3 numbers each, std above 0, not {list(mean)} and {list(std)}")
        if not 0 <= shift < image_size or not 0 <= cutout <= image_size:
            raise ValueError(f"shift {shift} and cutout {cutout} must lie between 0 and image_size {image_size}")
        if not 0 <= cutmix <= 1:
            raise ValueError(f"cutmix must lie between 0 and 1, not {cutmix}")
        self.num_classes, self.image_size = num_classes, image_size
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.mean, self.std = tuple(mean), tuple(std)
        self.augmentation = Augmentation(flip=flip, shift=shift, cutout=cutout, cutmix=cutmix)
        self.val_fraction, self.validate_on, self.split_seed = val_fraction, validate_on, split_seed
        self.seed = seed
        self.images: dict[str, Tensor] = {}
        self.labels: dict[str, Tensor] = {}
        self.corners: dict[str, Tensor] = {}

    @abstractmethod
    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """The training or the test set: uint8 (N, 3, H, W) and int64 (N,).

        Sets `classes`, the classes' names, and `corners` of "train" or "test" where the poses are known.
        """

    def setup(self, stage: str | None = None) -> None:
        """Reads everything once and splits off the held-out part. Raises ValueError when there is too little."""
        if self.images:
            return
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        train, test = self._read_sized(train=True), self._read_sized(train=False)
        if len(self.classes) != self.num_classes:
            raise ValueError(
                f"the data has {len(self.classes)} classes, but num_classes is {self.num_classes}: set "
                f"data.num_classes={len(self.classes)}"
            )
        if self.validate_on == "test":
            splits = {"train": train, "val": test, "test": test}
            if self.corners:
                self.corners["val"] = self.corners["test"]
        else:
            order = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(self.split_seed))
            held_out, kept = order.tensor_split([round(len(order) * self.val_fraction)])
            splits = {
                "train": (train[0][kept], train[1][kept]),
                "val": (train[0][held_out], train[1][held_out]),
                "test": test,
            }
            if self.corners:
                every = self.corners["train"]
                self.corners |= {"train": every[kept], "val": every[held_out]}
        for split, (images, labels) in splits.items():
            if len(images) == 0:
                raise ValueError(f"the {split} set is empty: {len(train[0])} training images are too few to split")
            self.images[split], self.labels[split] = images.to(device), labels.to(device)
        if len(self.train_dataloader()) == 0:
            raise ValueError(
                f"batch_size {self.batch_size} is larger than the training set of {len(self.images['train'])} images"
            )

    def train_dataloader(self) -> Batches:
        return self._batches("train", self.batch_size, self.augmentation)

    def val_dataloader(self) -> Batches:
        return self._batches("val", self.eval_batch_size)

    def test_dataloader(self) -> Batches:
        return self._batches("test", self.eval_batch_size)

    def _batches(self, split: str, batch_size: int, augmentation: Augmentation | None = None) -> Batches:
        return Batches(
            self.images[split],
            self.labels[split],
            batch_size=batch_size,
            mean=self.mean,
            std=self.std,
            classes=self.num_classes,
            augmentation=augmentation,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            ranks=self.trainer.world_size if self.trainer else 1,
        )

    def _read_sized(self, train: bool) -> tuple[Tensor, Tensor]:
        images, labels = self.read(train)
        if images.shape[-2:] != (self.image_size, self.image_size):
            images = torch.cat([resize(part, [self.image_size] * 2, antialias=True) for part in images.split(1000)])
        return images, labels
