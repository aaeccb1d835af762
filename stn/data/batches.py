"""Batches from images that live in memory: one index a batch, augmented as a whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Random flips, shifts and cutout for a whole batch at once, each image with its own draw.

    flip: mirror half of the images. shift: move by up to so many pixels each way, the uncovered border reflected.
    cutout: side in pixels of a square set to the mean colour (DeVries and Taylor 2017); 0 for none.
    """

    flip: bool = False
    shift: int = 0
    cutout: int = 0

    def move(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Flipped and shifted images, (N, C, H, W) of any dtype: one gather."""
        if not (self.flip or self.shift):
            return images
        count, _, height, width = images.shape
        rows = self._source(count, height, generator, images.device)
        columns = self._source(count, width, generator, images.device)
        if self.flip:
            mirrored = torch.rand(count, 1, generator=generator).to(images.device) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        each = torch.arange(count, device=images.device)[:, None, None]
        return images[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def erase(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Normalized images (N, C, H, W) with a square of each set to 0, their mean colour."""
        if not self.cutout:
            return images
        count, _, height, width = images.shape

        def within(size: int) -> Tensor:
            first = torch.randint(1 - self.cutout, size, (count, 1), generator=generator)
            offset = torch.arange(size) - first
            return ((offset >= 0) & (offset < self.cutout)).to(images.device)

        square = within(height)[:, None, :, None] & within(width)[:, None, None, :]
        return images.masked_fill(square, 0)

    def _source(self, count: int, size: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """For each image, which row (or column) of it each row of the shifted one is: (count, size)."""
        index = torch.arange(size) + torch.randint(-self.shift, self.shift + 1, (count, 1), generator=generator)
        return ((size - 1) - (index.abs() - (size - 1)).abs()).to(device)


class Batches:
    """An iterable of (images, labels): float32 normalized (N, C, H, W) and int64 (N,), anew at each iteration.

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
        augmentation: Augmentation | None = None,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size
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
        own = torch.Generator().manual_seed(seed * self.ranks + self.rank)
        for batch in order.split(self.batch_size)[: len(self)]:
            images = augmentation.move(self.images[batch], own)
            yield augmentation.erase(self.normalize(images), own), self.labels[batch]

    def normalize(self, images: Tensor) -> Tensor:
        """Images as the network sees them: uint8 (N, C, H, W) to float32 of mean 0 and deviation 1 a channel."""
        return images.to(torch.float32).sub_(self.mean).div_(self.std)
