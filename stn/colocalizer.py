"""The LightningModule of co-localization: finds what all images of a set share, without labels or boxes."""

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from stn.classifier import Classifier
from stn.layers import Attention, SpatialTransformer, transformers

MARGIN = 1.0  # of the hinge
CELLS = 7  # along a window, in each of which the localization sees the mean
BATCH, STEPS = 50, 20  # images of a step, and steps of an epoch
RATE = 1e-2
FOUND = 0.5  # the least intersection over union of a crop that has found its object


class WindowScores(nn.Sequential):
    """How likely each window of a lattice shows the object: (N, C, size, size) -> (N, out_features), which sum to 1.

    A convolution as large as a window sees all that is in it, and nothing else.

    channels, size: of the images. window: the side of the windows in pixels, which lie two sevenths of it apart. So one
        of them has an intersection over union above 0.5 with any window of that size.
    `windows` (out_features, 3) are the windows as θ of `Attention`.
    Raises ValueError for an image that is smaller than a window, or a window of less than 7 pixels.
    """

    def __init__(self, channels: int, size: int, window: int, hidden: int = 16) -> None:
        if not CELLS <= window <= size:
            raise ValueError(f"windows must have {CELLS} to {size} pixels, the side of the images, not {window}")
        cell, stride = window // CELLS, 2
        kernel = window // cell
        side = (size // cell - kernel) // stride + 1
        last = nn.Conv2d(hidden, 1, 1)
        nn.init.zeros_(last.weight)  # all windows are equally likely at first
        filters = nn.Conv2d(channels, hidden, kernel, stride)
        super().__init__(nn.AvgPool2d(cell), filters, nn.ReLU(), last, nn.Flatten(), nn.Softmax(dim=1))
        centres = (cell * (stride * torch.arange(side) + kernel / 2)) * 2 / size - 1
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        self.windows = torch.stack((torch.full_like(x, window / size), x, y), dim=-1).view(-1, 3)
        self.out_features = side**2


class Finder(SpatialTransformer):
    """A transformer that crops a window of an image: θ is the mean of the lattice's windows, by their likelihood.

    channels, size, window: see `WindowScores`.
    """

    localization: WindowScores

    @torch.no_grad()
    def __init__(self, channels: int, size: int, window: int) -> None:
        super().__init__(WindowScores(channels, size, window), Attention(), output_size=window)
        self.head.requires_grad_(False)
        self.head.weight.copy_(self.localization.windows.T)
        self.head.bias.zero_()


def embed(encoder: Classifier, crops: Tensor) -> Tensor:
    """Features (N, F) of normalized crops: what the classifier's first linear layer takes in, as vectors of length 1.

    The layers of a transformer do not count.
    """
    own = {part for module in transformers(encoder.net).values() for part in module.modules()}  # of localizations
    linear = next(module for module in encoder.net.modules() if isinstance(module, nn.Linear) and module not in own)
    seen: list[Tensor] = []
    with torch.no_grad(), linear.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])):
        encoder.net(crops)
    return F.normalize(seen[0].float().flatten(1), dim=1)


def triplet_loss(features: Tensor, likelihood: Tensor) -> Tensor:
    """The triplet hinge of a batch (Jaderberg et al. 2015, appendix on co-localization): expected, over all windows.

    features (N, K, F): of the K windows of each image, of length 1.
    likelihood (N, K): that a window is the crop of its image.
    A crop of image n shall be nearer to the crop of image m than to a random window of image n, by the margin. The crop
    of n is each window, weighted by its likelihood; those of the others are drawn by theirs.
    """
    count, windows, _ = features.shape
    image = torch.arange(count, device=features.device)
    drawn = features[image, torch.multinomial(likelihood.detach(), 1)[:, 0]]
    other = features[image, torch.randint(windows, (count,), device=features.device)]
    same = 2 - 2 * features @ drawn.T  # the squared distance of vectors of length 1
    apart = (features - other[:, None]).square().sum(dim=2)
    hinge = (same - apart[:, :, None] + MARGIN).clamp(min=0)
    itself = torch.eye(count, dtype=torch.bool, device=features.device)[:, None]
    return (likelihood * hinge.masked_fill(itself, 0).sum(dim=2)).sum() / (count * (count - 1))


class Colocalizer(pl.LightningModule):
    """Learns to crop what all images of a set share. Of several starts, that with the lowest loss counts.

    encoder: gives the features of crops. It is not trained, and its image size is that of the crops.
    images (N, C, size, size) uint8: two or more.
    boxes (N, 4): where the object is, (left, top, right, bottom) in [-1, 1]. They give the score alone: the share of
        the images whose crop and box have an intersection over union of 0.5 or more.
    starts: how many transformers learn side by side.
    """

    def __init__(self, encoder: Classifier, images: Tensor, boxes: Tensor, starts: int = 4) -> None:
        super().__init__()
        self.pixels: Tensor
        self.images: Tensor
        self.boxes: Tensor
        self.losses: Tensor
        self.features: Tensor
        window = int(encoder.hparams["image_size"])
        self.normalization = encoder.normalization.train()  # Lightning warns of parts in eval mode
        self.finders = nn.ModuleList(Finder(images.shape[1], images.shape[2], window) for _ in range(starts))
        for name, buffer in {
            "pixels": images,
            "images": encoder.normalization(images),
            "boxes": boxes,
            "losses": torch.ones(starts),
        }.items():
            self.register_buffer(name, buffer, persistent=False)

        windows = self.best.localization.windows
        crops = (self.best.transform(self.images, window.expand(len(images), -1)) for window in windows)
        self.register_buffer("features", torch.stack([embed(encoder, crop) for crop in crops], dim=1), persistent=False)

    @property
    def each(self) -> list[Finder]:
        """The transformers."""
        return [one for one in self.finders if isinstance(one, Finder)]

    @property
    def best(self) -> Finder:
        """The transformer whose loss was lowest of late."""
        return self.each[int(self.losses.argmin())]

    @torch.no_grad()
    def theta(self) -> Tensor:
        """θ (N, 3) of the crops of all images."""
        return self.best.theta(self.images)

    def overlaps(self) -> Tensor:
        """The intersection over union of crop and box, (N,)."""
        whole = torch.tensor([-1.0, -1.0, 1.0, 1.0], device=self.device).expand(len(self.boxes), 1, -1)
        crops = self.best.boxes_to_input(self.theta(), whole)
        return torch.stack([box_iou(crop, box[None])[0, 0] for crop, box in zip(crops, self.boxes, strict=True)])

    def training_step(self, step: int) -> Tensor:
        chosen = torch.randperm(len(self.images), device=self.device)[:BATCH]
        images, features = self.images[chosen], self.features[chosen]
        losses = torch.stack([triplet_loss(features, one.localization(images)) for one in self.each])
        self.losses = 0.9 * self.losses + 0.1 * losses.detach()
        self.log("train/loss", self.losses.min(), on_step=False, on_epoch=True, batch_size=1)
        return losses.sum()

    def validation_step(self, step: int) -> None:
        self._score("val")

    def test_step(self, step: int) -> None:
        self._score("test")

    def _score(self, stage: str) -> None:
        overlaps = self.overlaps()
        values = {f"{stage}/found": (overlaps >= FOUND).float().mean(), f"{stage}/overlap": overlaps.mean()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam((weight for weight in self.finders.parameters() if weight.requires_grad), RATE)

    def train_dataloader(self) -> range:
        return range(STEPS)  # of which each draws its own images

    def val_dataloader(self) -> range:
        return range(1)

    test_dataloader = val_dataloader
