"""What a network takes of an image: the whole or a part, resized to a square, in its channels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from stn.classifier import Classifier
from stn.data.decoding import MODES, converted, eight_bits, naming, read, to_array
from stn.errors import InputError

Crop = Literal["center"]
Picture = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True, eq=False)
class View:
    """An image as a network takes it.

    pixels: (C, H, W), uint8 or floats in [0, 1].
    size: the original's (width, height). box: the (left, top, right, bottom) of its part that was taken, in pixels.
    """

    pixels: Tensor
    size: tuple[int, int]
    box: tuple[int, int, int, int]

    def to_original(self, points: Tensor) -> Tensor:
        """Maps points (K, 2) of the part, in [-1, 1], to the original, in [-1, 1]."""
        low, high = torch.tensor(self.box).view(2, 2)
        return 2 * (low + (points + 1) / 2 * (high - low)) / torch.tensor(self.size) - 1


def views_of(images: Picture | Iterable[Picture] | Tensor, classifier: Classifier, crop: Crop | None) -> Iterator[View]:
    """The views of images, one by one. Raises ValueError for what is no image."""
    if isinstance(images, Tensor):
        check_tensor(images, classifier)
        yield from (view_of_tensor(image, classifier, crop) for image in images)
        return
    check_channels(classifier)
    if isinstance(images, str | os.PathLike | Image.Image | np.ndarray):
        images = [images]
    if not isinstance(images, Iterable):
        raise InputError(
            f"images must be a path, a PIL image, an array, a list of those, or a tensor, not {type(images).__name__}"
        )
    for index, image in enumerate(images):
        is_path = isinstance(image, str | os.PathLike)
        with naming(str(image) if is_path else f"images[{index}]"):
            view = view_of(opened(image), classifier, crop)
        yield view


def opened(image: Picture) -> Image.Image:
    """The whole image, upright and with 8 bits a channel. Raises exceptions of many classes, see `naming`."""
    if isinstance(image, str | os.PathLike):
        return read(os.fspath(image))
    if isinstance(image, np.ndarray):
        return from_array(image)
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"it is of type {type(image).__name__}; give a path, a PIL image or an array, or one tensor for all"
        )
    turned = image
    with suppress(Exception):  # EXIF data may be damaged
        turned = ImageOps.exif_transpose(image)
        turned.format = image.format
    return eight_bits(turned)


def from_array(array: np.ndarray) -> Image.Image:
    """The image of an array (H, W) or (H, W, C), uint8 or floats in [0, 1]. Raises ValueError for another one."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in MODES or not array.size:
        raise ValueError(f"it is an array {array.shape}; give (H, W), or (H, W, C) with 1 to 4 channels")
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):
            raise ValueError(f"it has floats from {array.min():g} to {array.max():g}; give floats in [0, 1], or uint8")
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"it is an array of {array.dtype}; give uint8, or floats in [0, 1]")
    return Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array)


def check_channels(classifier: Classifier) -> None:
    """Raises InputError for a network that takes another number of channels than an image can have."""
    channels = classifier.hparams["channels"]
    if channels not in MODES:
        raise InputError(f"the network takes {channels} channels, and an image has 1 to 4: give a tensor, from Python")


def view_of(image: Image.Image, classifier: Classifier, crop: Crop | None) -> View:
    """The view of an upright image with 8 bits a channel, resized to the network's square."""
    channels, side = classifier.hparams["channels"], classifier.hparams["image_size"]
    if 0 in image.size:
        raise ValueError(f"it has {image.width} x {image.height} pixels")
    box = part(*image.size, crop)
    taken = converted(image.crop(box) if crop else image, channels, background(classifier))
    return View(torch.tensor(to_array(taken, side)), image.size, box)


def part(width: int, height: int, crop: Crop | None) -> tuple[int, int, int, int]:
    """The part of an image that is taken, (left, top, right, bottom) in pixels: all, or the central square."""
    if crop is None:
        return 0, 0, width, height
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def background(classifier: Classifier) -> tuple[int, int, int]:
    """The mean colour of the training images, RGB, which transparent pixels show."""
    red, *others = (255 * classifier.normalization.mean.flatten()).round().clamp(0, 255).int().tolist()
    green, blue = others[:2] if len(others) > 1 else (red, red)
    return red, green, blue


def check_tensor(images: Tensor, classifier: Classifier) -> None:
    """Raises InputError for a tensor that is not (N, C, H, W) with the network's channels, uint8 or in [0, 1]."""
    channels = classifier.hparams["channels"]
    if images.ndim != 4 or images.shape[1] != channels or 0 in images.shape[2:]:
        raise InputError(f"a tensor must be (N, {channels}, H, W) for this network, not {tuple(images.shape)}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise InputError(f"a tensor must be of uint8, or of floats in [0, 1], not of {images.dtype}")
    if images.is_floating_point() and len(images) and not (images.min() >= 0 and images.max() <= 1):
        low, high = images.min(), images.max()
        raise InputError(f"a tensor of floats must lie in [0, 1], not between {low:g} and {high:g}; or give uint8")


def view_of_tensor(image: Tensor, classifier: Classifier, crop: Crop | None) -> View:
    """The view of an image (C, H, W), resized to the network's square."""
    height, width = image.shape[1:]
    side = classifier.hparams["image_size"]
    left, top, right, bottom = box = part(width, height, crop)
    taken = image[:, top:bottom, left:right]
    taken = taken.float() if taken.is_floating_point() else taken
    if taken.shape[1:] != (side, side):
        resized = F.interpolate(taken[None].float(), (side, side), mode="bicubic", antialias=True)[0]
        taken = resized.clamp(0, 1) if image.is_floating_point() else resized.round().clamp(0, 255).byte()
    return View(taken, (width, height), box)
