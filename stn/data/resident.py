"""What every data set of this project shares: it is read once, lives in memory as uint8, and gives whole batches."""

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchvision.transforms.functional import resize

from stn.data.batches import Augmentation, Batches, random_stream
from stn.data.decoding import check_memory
from stn.data.distortion import Distortion

LARGEST_SIDE, MOST_CHANNELS = 4096, 1024


class ResidentDataModule(pl.LightningDataModule, ABC):
    """Training, validation and test batches from images in memory, on the trainer's device.

    A data set is a subclass that has `classes`, the names of the classes, and the method `read`.

    channels: the number of channels of each image.
    image_size: the side of the images in pixels; images of another size are resized.
    batch_size: the images of a training step, in each process.
    eval_batch_size: the images of a step of validation and test.
    mean: the mean of each channel, for values in [0, 1]; None: as measured on the training images.
    std: the deviation of each channel, for values in [0, 1]; None: as measured on the training images.
    flip, shift, cutout, cutmix: see `Augmentation`.
    val_fraction: the share of the training set that is held out for validation.
    validate_on: "held_out"; or "test", which trains on the whole training set and validates on the test set, as
        published logs often do.
    split_seed: chooses the images that are held out, and the subset.
    subset: the number of training images, evenly over the classes; None: all that are not held out.
    distortion: of all images, drawn anew for each batch in training, and once for validation and test; None for none.
    test_distortion: of the test images, if it is another one.
    seed: of the order and the augmentation.
    Raises ValueError for values out of range.

    After `setup`, `images` (uint8, (N, C, H, W)) and `labels` (int64, (N,)) hold "train", "val" and "test"; `digest`
    tells one training set from another, `test_digest` one test set. If poses are known, `figures` (N, 16, 2) holds
    where in each image the `figure_points` of its upright figure are, (x, y) in [-1, 1].
    """

    classes: Sequence[str]

    def __init__(
        self,
        channels: int = 3,
        image_size: int = 32,
        batch_size: int = 256,
        eval_batch_size: int = 1000,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        flip: bool = False,
        shift: int = 0,
        cutout: int = 0,
        cutmix: float = 0.0,
        val_fraction: float = 0.05,
        validate_on: Literal["held_out", "test"] = "held_out",
        split_seed: int = 0,
        subset: int | None = None,
        distortion: Distortion | None = None,
        test_distortion: Distortion | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        counts = {"channels": channels, "image_size": image_size, "batch_size": batch_size}
        counts["eval_batch_size"] = eval_batch_size
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, not {value}")
        if image_size > LARGEST_SIDE or channels > MOST_CHANNELS:
            raise ValueError(
                f"image_size must be {LARGEST_SIDE} or less, and channels {MOST_CHANNELS}, not {image_size} and "
                f"{channels}"
            )
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must be above 0 and below 1, not {val_fraction}")
        for name, values in {"mean": mean, "std": std}.items():
            if values is not None and not (len(values) == channels and all(map(math.isfinite, values))):
                raise ValueError(
                    f"{name} must be null, or a number for each of the channels ({channels}), not {list(values)}"
                )
        if std is not None and min(std) <= 0:
            raise ValueError(f"std must be above 0, not {list(std)}")
        if not 0 <= shift < image_size or not 0 <= cutout <= image_size:
            raise ValueError(f"shift {shift} and cutout {cutout} must lie between 0 and image_size {image_size}")
        if not 0 <= cutmix <= 1:
            raise ValueError(f"cutmix must lie between 0 and 1, not {cutmix}")
        self.channels, self.image_size = channels, image_size
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.mean, self.std = list(mean or ()), list(std or ())
        self.augmentation = Augmentation(flip=flip, shift=shift, cutout=cutout, cutmix=cutmix)
        if subset is not None and subset < 1:
            raise ValueError(f"subset must be null, or 1 or more, not {subset}")
        self.val_fraction, self.validate_on, self.split_seed = val_fraction, validate_on, split_seed
        self.subset = subset
        self.seed = seed
        self.digest = self.test_digest = ""
        self.images: dict[str, Tensor] = {}
        self.labels: dict[str, Tensor] = {}
        self.figures: dict[str, Tensor] = {}
        self.groups: Tensor | None = None
        self.distortions = {"train": distortion, "val": distortion, "test": test_distortion or distortion}
        sides = {name: one.side(image_size) if one else image_size for name, one in self.distortions.items()}
        if sides["test"] != sides["train"]:
            raise ValueError(
                f"distortion and test_distortion must have one canvas, not {sides['train']} and {sides['test']} pixels"
            )
        self.input_size = sides["train"]

    @abstractmethod
    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Reads the training or the test set: uint8 (N, C, H, W) of any size, and int64 (N,).

        If the poses are known, it also sets `figures["train"]` or `figures["test"]`. If training images belong
        together, such as the frames of a track, it sets `groups` (N,), numbers from 0.
        """

    def setup(self, stage: str | None = None) -> None:
        """Reads the data of a stage once: "fit", "validate" or "test"; None reads everything.

        Raises ValueError for a wrong number of channels, or too few images.
        """
        if stage in ("fit", "validate", None) and "train" not in self.images:
            self._setup_training()
        if (stage in ("test", None) or self.validate_on == "test") and "test" not in self.images:
            images, labels = self._read_sized(train=False)
            self.test_digest = digest(images, labels)
            self._store("test", images, labels)
            self.fix("test")
        if self.validate_on == "test":
            for tensors in (self.images, self.labels, self.figures):
                if "test" in tensors:
                    tensors["val"] = tensors["test"]

    def _setup_training(self) -> None:
        images, labels = self._read_sized(train=True)
        held_out_share = 0.0 if self.validate_on == "test" else self.val_fraction
        order, cut = torch.arange(len(images)), round(len(images) * held_out_share)
        if cut:
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.split_seed))
        if cut and self.groups is not None:
            # A group is where its first image is, and the cut is behind a whole group.
            first = torch.full((int(self.groups.max()) + 1,), len(order))
            first = first.scatter_reduce(0, self.groups[order], torch.arange(len(order)), "amin")
            places, order = first[self.groups].sort(stable=True)
            cut = int((places <= places[cut - 1]).sum())
        held_out, kept = order.tensor_split([cut])
        if held_out_share and not (len(held_out) and len(kept)):
            empty = "training" if len(held_out) else "validation"
            raise ValueError(f"the {empty} set is empty: {len(images)} training images are too few to split")
        if self.subset is not None:
            if self.subset > len(kept):
                raise ValueError(f"subset must be at most {len(kept)}, the images to train on, not {self.subset}")
            kept = kept[even_subset(labels[kept], self.subset, self.split_seed)]
        if len(kept) < self.batch_size * self._world_size:
            each = f" in each of {self._world_size} processes" if self._world_size > 1 else ""
            raise ValueError(
                f"batch_size {self.batch_size}{each} is larger than the training set of {len(kept)} images: set "
                f"data.batch_size={max(1, min(32, len(kept) // self._world_size))} or less"
            )
        figures = self.figures.get("train")
        for split, chosen in {"val": held_out, "train": kept}.items():
            self._store(split, images[chosen], labels[chosen])
            if figures is not None:
                self.figures[split] = figures[chosen].to(self.images[split].device)
        self.digest = digest(images, labels)
        mean, std = channel_statistics(self.images["train"])
        self.mean, self.std = self.mean or mean, self.std or std
        self.fix("val")

    def fix(self, split: str) -> None:
        """Distorts the images of a split once and for all; "train" is then no longer drawn anew."""
        distortion, self.distortions[split] = self.distortions[split], None
        if distortion is None or not len(self.images.get(split, ())):
            return
        check_memory(len(self.images[split]), self.channels, distortion.side(self.image_size))
        generator = random_stream("distortion", self.split_seed, split)
        images, figures = self.images[split], self.figures.get(split)
        # Pieces are cut from other images of a part. A folder is read class by class, so it is shuffled for them.
        order = torch.randperm(len(images), generator=generator) if distortion.pieces else torch.arange(len(images))
        parts = [
            distortion(images[part], generator, None if figures is None else figures[part])
            for part in order.tensor_split(math.ceil(len(order) / 500))
        ]
        back = order.argsort()
        self.images[split], self.figures[split] = (torch.cat(found)[back] for found in zip(*parts, strict=True))

    def _store(self, split: str, images: Tensor, labels: Tensor) -> None:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        self.images[split], self.labels[split] = images.to(device), labels.to(device)

    def train_dataloader(self) -> Batches:
        return self._batches("train", self.batch_size, self.augmentation)

    def val_dataloader(self) -> Batches:
        return self.eval_batches("val")

    def test_dataloader(self) -> Batches:
        return self.eval_batches("test")

    def eval_batches(self, split: str) -> Batches:
        """Every image of "train", "val" or "test" once, in order and without augmentation."""
        return self._batches(split, self.eval_batch_size)

    def _batches(self, split: str, batch_size: int, augmentation: Augmentation | None = None) -> Batches:
        return Batches(
            self.images[split],
            self.labels[split],
            batch_size=batch_size,
            mean=self.mean,
            classes=len(self.classes),
            augmentation=augmentation,
            figures=self.figures.get(split) if augmentation else None,
            distortion=self.distortions[split] if augmentation else None,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self._world_size,
        )

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def _read_sized(self, train: bool) -> tuple[Tensor, Tensor]:
        images, labels = self.read(train)
        if images.shape[1] != self.channels:
            raise ValueError(
                f"the images have {images.shape[1]} channels, but channels is {self.channels}: set "
                f"data.channels={images.shape[1]}"
            )
        if images.shape[-2:] != (self.image_size, self.image_size):
            images = torch.cat([resize(part, [self.image_size] * 2, antialias=True) for part in images.split(1000)])
        return images, labels


def digest(*tensors: Tensor) -> str:
    """A short text that changes with the numbers in some tensors on a CPU."""
    found = 0
    for tensor in tensors:
        found = zlib.crc32(tensor.contiguous().numpy().data, found)  # 0.04 s for CIFAR-10
    return f"{found:08x}"


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel of uint8 images (N, C, H, W), for values in [0, 1].

    The deviation is at least 1/255, so that a constant channel can be divided by it.
    """
    sums = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for part in images.split(100):
        values = part.int()  # exact, and some devices have no float64
        sums += torch.stack((values, values.square())).sum(dim=(1, 3, 4)).cpu()
    mean, square = sums / (len(images) * images[0, 0].numel())
    std = (square - mean.square()).clamp(min=1).sqrt()
    return (mean / 255).tolist(), (std / 255).tolist()


def even_subset(labels: Tensor, count: int, seed: int) -> Tensor:
    """Places of `count` labels, at random, but as many of each class as of the others while they last."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class, places = labels[order].sort(stable=True)
    rank = torch.arange(len(labels)) - torch.searchsorted(by_class, by_class)  # within its class
    return order[places[rank.argsort(stable=True)[:count]]]
