"""Batches from images in memory; each batch is read and augmented as a whole."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stn.data.distortion import Distortion


@dataclass(frozen=True)
class Augmentation:
    """Augments a whole batch at once, with a random draw for each image.

    flip: mirrors half of the images, and in the next epoch the other half (alternating flip: K. Jordan 2024, "94% on
        CIFAR-10 in 3.29 seconds on a single GPU", section 3.6).
    shift: the largest shift in pixels along each axis; the uncovered border is a reflection.
    cutout: side in pixels of a square that is set to the mean colour (DeVries and Taylor 2017); 0 for none.
    cutmix: the share of images, from 0 to 1, in which a rectangle is replaced by that of another image. The label is
        mixed in proportion to the area (Yun et al. 2019).
    """

    flip: bool = False
    shift: int = 0
    cutout: int = 0
    cutmix: float = 0.0

    def mirrored(self, count: int, seed: int, epoch: int) -> Tensor:
        """Which of `count` images are mirrored in an epoch: (count,), bool."""
        if not self.flip:
            return torch.zeros(count, dtype=torch.bool)
        first = torch.rand(count, generator=random_stream("mirrored", seed)) < 0.5
        return first if epoch % 2 == 0 else ~first

    def move(self, images: Tensor, mirrored: Tensor, generator: torch.Generator) -> Tensor:
        """Mirrors the images (N, C, H, W) for which `mirrored` (N,) is true, and shifts each at random."""
        if not (self.flip or self.shift):
            return images
        count, channels, height, width = images.shape
        rows = self._source(count, height, generator, images.device)
        columns = self._source(count, width, generator, images.device)
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        first = torch.arange(count * channels, device=images.device).view(count, channels, 1) * height
        moved = images.reshape(-1, width).index_select(0, (first + rows[:, None, :]).flatten()).view_as(images)
        return moved.gather(3, columns[:, None, None, :].expand_as(images))

    def erase(self, images: Tensor, fill: Tensor, generator: torch.Generator) -> Tensor:
        """Sets a square in each of the images (N, C, H, W) to the colour `fill` (C, 1, 1)."""
        if not self.cutout:
            return images
        count, _, height, width = images.shape
        top, left = (torch.randint(1 - self.cutout, size, (count,), generator=generator) for size in (height, width))
        square = rectangle(height, width, top, left, top + self.cutout, left + self.cutout)
        return torch.where(square.to(images.device), fill, images)

    def mix(self, images: Tensor, labels: Tensor, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Replaces a rectangle in some images (N, C, H, W) by that of another image.

        Returns the images and the share of each class in them, (N, classes).
        """
        count, _, height, width = images.shape
        # The area is uniform in [0, 1] of the image, and the centre uniform over it.
        side = (
            torch.rand(count, generator=generator).sqrt() / 2 * (torch.rand(count, generator=generator) < self.cutmix)
        )
        centre = torch.rand(2, count, generator=generator)
        (top, left), (bottom, right) = (
            ((centre + sign * side) * torch.tensor([[height], [width]])).round().long() for sign in (-1, 1)
        )
        inside = rectangle(height, width, top, left, bottom, right).to(images.device)
        share = inside.float().mean(dim=(1, 2, 3))[:, None]
        shares = F.one_hot(labels, classes).float()
        # The other image is the neighbour in the batch, which is shuffled already.
        return torch.where(inside, images.roll(1, 0), images), shares.lerp(shares.roll(1, 0), share)

    def _source(self, count: int, size: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """The source row (or column) of each row (or column) of each shifted image, (count, size)."""
        index = torch.arange(size) + torch.randint(-self.shift, self.shift + 1, (count, 1), generator=generator)
        return ((size - 1) - (index.abs() - (size - 1)).abs()).to(device)


def rectangle(height: int, width: int, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor) -> Tensor:
    """A mask for each of N images, true from top, left to bottom, right, each (N,): (N, 1, height, width)."""
    row, column = torch.arange(height), torch.arange(width)
    rows = (row >= top[:, None]) & (row < bottom[:, None])
    columns = (column >= left[:, None]) & (column < right[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def random_stream(*key: str | int) -> torch.Generator:
    """A generator of random numbers that are independent of those of any other key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()  # torch takes 32 bits of a seed
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class Batches:
    """An iterable of (images, labels): uint8 (N, C, H, W) and int64 (N,), or shares float32 (N, classes) with CutMix.

    Where poses are known in training, of (images, labels, figures): figures (N, 16, 2) is where in each image the
    `figure_points` of its upright figure are.

    With an augmentation, the order and the random draws depend on `seed` and the epoch alone, and the last, incomplete
    batch is left out. Without one, every image comes once, in order.
    mean: the colour that cutout fills with, a number in [0, 1] for each channel.
    figures: of all images, if their poses are known. distortion: of the images in training, drawn anew for each batch.
    rank, world_size: the index of this process and the number of processes. Each process has its own images, and as
        many training batches as the others.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        mean: Sequence[float] = (),
        classes: int = 10,
        augmentation: Augmentation | None = None,
        figures: Tensor | None = None,
        distortion: Distortion | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images, self.labels, self.batch_size, self.classes = images, labels, batch_size, classes
        self.fill = (torch.tensor(mean) * 255).round().to(torch.uint8).to(images.device)[:, None, None]
        self.figures, self.distortion = figures, distortion
        self.augmentation, self.seed, self.rank, self.world_size = augmentation, seed, rank, world_size
        self.epoch = 0

    def __len__(self) -> int:
        share = len(range(self.rank, len(self.images), self.world_size))
        if self.augmentation is not None:
            return len(self.images) // self.world_size // self.batch_size
        return max(1, -(-share // self.batch_size))  # a process without images has one batch, which is empty

    batch_sampler = None  # Lightning looks for this and `sampler`, and calls the sampler's `set_epoch`.

    @property
    def sampler(self) -> "Batches":
        """Itself: it draws its own order."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, which decides the order and the random draws of the next pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        if self.augmentation is None:
            yield from self._in_order()
        else:
            yield from self._shuffled(self.augmentation)

    def _in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self.images[self.rank :: self.world_size], self.labels[self.rank :: self.world_size]
        yield from zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True)

    def _shuffled(self, augmentation: Augmentation) -> Iterator[tuple[Tensor, ...]]:
        order = torch.randperm(len(self.images), generator=random_stream("order", self.seed, self.epoch))
        order = order[self.rank :: self.world_size].to(self.images.device)
        mirrored = augmentation.mirrored(len(self.images), self.seed, self.epoch).to(self.images.device)
        own = random_stream("augmentation", self.seed, self.epoch, self.rank)
        for batch in order.split(self.batch_size)[: len(self)]:
            images = augmentation.move(self.images.index_select(0, batch), mirrored[batch], own)
            images, labels = augmentation.erase(images, self.fill, own), self.labels[batch]
            if augmentation.cutmix:
                images, labels = augmentation.mix(images, labels, self.classes, own)
            figures = None if self.figures is None else self.figures[batch]
            if self.distortion:
                images, figures = self.distortion(images, own, figures)
            yield (images, labels) if figures is None else (images, labels, figures)
