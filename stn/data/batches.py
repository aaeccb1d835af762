"""Batches from images that live in memory: one index a batch, augmented as a whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Flips, shifts and cutout for a whole batch at once, each image with its own draw.

    flip: mirror half of the images, and in the next epoch the other half (alternating flip: K. Jordan 2024, "94% on
    CIFAR-10 in 3.29 seconds on a single GPU", section 3.6). shift: move by up to so many pixels each way, the
    uncovered border reflected. cutout: side in pixels of a square set to the mean colour (DeVries and Taylor 2017); 0
    for none. cutmix: the part of the images, from 0 to 1, that get a rectangle of another image of the batch, and its
    class in proportion to the area (Yun et al. 2019).
    """

    flip: bool = False
    shift: int = 0
    cutout: int = 0
    cutmix: float = 0.0

    def mirrored(self, count: int, seed: int, epoch: int) -> Tensor:
        """Which of `count` images an epoch shows mirrored: (count,), bool."""
        if not self.flip:
            return torch.zeros(count, dtype=torch.bool)
        first = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
        return first if epoch % 2 == 0 else ~first

    def move(self, images: Tensor, mirrored: Tensor, generator: torch.Generator) -> Tensor:
        """Images (N, C, H, W) of any dtype, mirrored where `mirrored` (N,) says, each shifted: rows, then columns."""
        if not (self.flip or self.shift):
            return images
        count, channels, height, width = images.shape
        rows = self._source(count, height, generator, images.device)
        columns = self._source(count, width, generator, images.device)
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        first = torch.arange(count * channels, device=images.device).view(count, channels, 1) * height
        moved = images.reshape(-1, width).index_select(0, (first + rows[:, None, :]).flatten()).view_as(images)
        return moved.gather(3, columns[:, None, None, :].expand_as(images))

    def erase(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Sets a square of each of the normalized images (N, C, H, W), in place, to 0, their mean colour."""
        if not self.cutout:
            return images
        count, _, height, width = images.shape
        top, left = (torch.randint(1 - self.cutout, size, (count,), generator=generator) for size in (height, width))
        square = rectangle(height, width, top, left, top + self.cutout, left + self.cutout)
        return images.masked_fill_(square.to(images.device), 0)

    def mix(self, images: Tensor, labels: Tensor, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) with rectangles of each other, and the share of each class in them, (N, classes)."""
        count, _, height, width = images.shape
        # A share of the area that is uniform, its centre anywhere in the image.
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
        # The neighbour in a batch that is shuffled anyway.
        return torch.where(inside, images.roll(1, 0), images), shares.lerp(shares.roll(1, 0), share)

    def _source(self, count: int, size: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """For each image, which row (or column) of it each row of the shifted one is: (count, size)."""
        index = torch.arange(size) + torch.randint(-self.shift, self.shift + 1, (count, 1), generator=generator)
        return ((size - 1) - (index.abs() - (size - 1)).abs()).to(device)


def rectangle(height: int, width: int, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor) -> Tensor:
    """For each of N images, which pixels lie from top, left to bottom, right, each (N,): (N, 1, height, width)."""
    row, column = torch.arange(height), torch.arange(width)
    rows = (row >= top[:, None]) & (row < bottom[:, None])
    columns = (column >= left[:, None]) & (column < right[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


class Batches:
    """An iterable of (images, labels): float32 normalized (N, C, H, W) and int64 (N,), anew at each iteration.

    Where images are mixed, labels are the share of each class, float32 (N, classes).

    With an augmentation, the order and the distortions are drawn from `seed` and the epoch, so that a run repeats
    itself, and the last incomplete batch is left out. Without one, every image comes once, in order.
    `rank` and `ranks` share a pass among processes; all get the same number of batches in training.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        classes: int = 10,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.images, self.labels, self.batch_size, self.classes = images, labels, batch_size, classes
        channels = (1, len(mean), 1, 1)
        self.mean = torch.tensor(mean, device=images.device).view(channels) * 255
        self.std = torch.tensor(std, device=images.device).view(channels) * 255
        self.augmentation, self.seed, self.rank, self.ranks = augmentation, seed, rank, ranks
        self.epoch = 0

    def __len__(self) -> int:
        share = len(range(self.rank, len(self.images), self.ranks))
        if self.augmentation is not None:
            return len(self.images) // self.ranks // self.batch_size
        return -(-share // self.batch_size)

    batch_sampler = None  # Lightning looks for both, and announces each epoch to the sampler.

    @property
    def sampler(self) -> "Batches":
        """Itself, which draws its own order."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order and distortions come next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.augmentation is None:
            yield from self._in_order()
        else:
            yield from self._shuffled(self.augmentation)

    def _in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self.images[self.rank :: self.ranks], self.labels[self.rank :: self.ranks]
        for part, truth in zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True):
            yield self.normalize(part), truth

    def _shuffled(self, augmentation: Augmentation) -> Iterator[tuple[Tensor, Tensor]]:
        seed = self.seed * 1_000_003 + self.epoch
        shared = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.images), generator=shared)[self.rank :: self.ranks].to(self.images.device)
        mirrored = augmentation.mirrored(len(self.images), self.seed, self.epoch).to(self.images.device)
        own = torch.Generator().manual_seed(seed * self.ranks + self.rank)
        for batch in order.split(self.batch_size)[: len(self)]:
            images = augmentation.move(self.images.index_select(0, batch), mirrored[batch], own)
            images, labels = augmentation.erase(self.normalize(images), own), self.labels[batch]
            yield augmentation.mix(images, labels, self.classes, own) if augmentation.cutmix else (images, labels)

    def normalize(self, images: Tensor) -> Tensor:
        """Images as the network sees them: uint8 (N, C, H, W) to float32 of mean 0 and deviation 1 a channel."""
        return images.to(torch.float32).sub_(self.mean).div_(self.std)
