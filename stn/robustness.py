"""Accuracy on images that are turned, scaled or shifted, by the warps of this project."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from stn.layers import Attention, Rotation, Translation, Warp, pixel_centres, sample
from stn.measures import accuracy


@dataclass(frozen=True)
class Sweep:
    """A series of warps of one kind.

    what: is done to the images, with its unit. values: ascending. identity: the value that changes nothing.
    warp, theta: the warp, and its θ for a value.
    """

    what: str
    values: Sequence[float]
    identity: float
    warp: Warp
    theta: Callable[[float], list[float]]


# A warp says where the output reads, so the image itself moves the other way.
SWEEPS = {
    "rotation": Sweep(
        "turned clockwise (degrees)", range(-180, 181, 15), 0, Rotation(), lambda angle: [-math.radians(angle)]
    ),
    "scale": Sweep(
        "enlarged (times)",
        [round(2 ** (step / 4), 3) for step in range(-4, 5)],
        1,
        Attention(),
        lambda scale: [1 / scale, 0, 0],
    ),
    "shift_x": Sweep(
        "moved to the right (of the width)",
        [step / 10 for step in range(-5, 6)],
        0,
        Translation(),
        lambda share: [-2 * share, 0],
    ),
    "shift_y": Sweep(
        "moved down (of the height)",
        [step / 10 for step in range(-5, 6)],
        0,
        Translation(),
        lambda share: [0, -2 * share],
    ),
}


def warped(images: Tensor, sweep: Sweep, value: float) -> Tensor:
    """Images (N, C, H, W) uint8 after a warp of a sweep, as uint8; beyond their border they go on as at the border."""
    height, width = images.shape[2:]
    theta = torch.tensor([sweep.theta(value)], dtype=torch.float32)
    points = sweep.warp(theta, pixel_centres(height, width)).view(1, height, width, 2)
    read = sample(images.float(), points.to(images.device).expand(len(images), -1, -1, -1), padding="border")
    return read.round().clamp(0, 255).byte()


def curve(
    score: Callable[[Tensor], Tensor], batches: Sequence[tuple[Tensor, Tensor]], name: str, *, show: bool = False
) -> list[dict[str, Any]]:
    """The accuracy for each value of a sweep.

    score: the scores (N, K) of images (N, C, H, W) uint8. batches: images and labels (N,). name: one of `SWEEPS`.
    show: whether there is a progress bar.
    """
    sweep, found = SWEEPS[name], []
    labels = torch.cat([labels for _, labels in batches])
    for value in track(sweep.values, f"sweep={name}", transient=True, disable=not show):
        scores = torch.cat([score(warped(images, sweep, value)) for images, _ in batches])
        found.append({"value": value, "accuracy": accuracy(scores, labels)})
    return found
