"""What the network of a run sees in images of any kind and size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar, get_args

import torch
from torch import Tensor

from stn.classifier import Classifier
from stn.errors import InputError
from stn.figures import outlines
from stn.layers import SpatialTransformer, recording, transformers
from stn.scoring import finite_scores
from stn.views import Crop, Picture, View, views_of

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network sees in an image.

    label, name, probability: of the most probable class.
    probabilities: of every class by its name, the most probable first.
    theta: θ (P,) of the first transformer, or None without one.
    pose: where that transformer reads: rotation_degrees (clockwise), scale (below 1 it zooms in), and shift_x and
        shift_y in half-widths and half-heights, all of the part of the image that is seen, resized to a square; empty
        without one.
    outline: the border of the region that this transformer reads, (K, 2), (x, y) in [-1, 1] of the whole original,
        clockwise from the upper left corner of what is read.
    """

    label: int
    name: str
    probability: float
    probabilities: dict[str, float] = field(repr=False)
    theta: Tensor | None = field(repr=False)
    pose: dict[str, float] = field(repr=False)
    outline: Tensor | None = field(repr=False)


def predict(
    classifier: Classifier, images: Picture | Iterable[Picture] | Tensor, crop: Crop | None, batch_size: int
) -> list[Prediction]:
    """Predicts images, see `Run.predict`."""
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} must be 1 or more")
    if crop not in (None, *get_args(Crop)):
        raise InputError(f"crop={crop!r} must be None or one of {', '.join(get_args(Crop))}")
    batches = in_batches(views_of(images, classifier, crop), batch_size)
    return [found for batch in batches for found in predict_views(classifier, batch)]


@torch.no_grad()
def predict_views(classifier: Classifier, views: Sequence[View]) -> list[Prediction]:
    """Predicts one batch of views. Raises InputError for a network whose scores are not finite."""
    pixels = torch.stack([view.pixels for view in views]).to(classifier.device)
    with recording(classifier.net) as records:
        probabilities = finite_scores(classifier, pixels).softmax(dim=1).cpu()
    thetas: Sequence[Tensor | None] = [None] * len(views)
    borders = thetas
    poses: Sequence[dict[str, float]] = [{}] * len(views)
    if first := next(iter(transformers(classifier.net).items()), None):
        name, transformer = first
        theta = records[name][0].theta  # of the image itself, which comes first of the views that are scored
        poses = poses_of(transformer, theta.float())
        thetas, borders = list(theta.cpu()), list(outlines(transformer, theta, *pixels.shape[2:]))
    classes = classifier.hparams["classes"]
    predictions = []
    for view, row, theta_of, pose, border in zip(views, probabilities, thetas, poses, borders, strict=True):
        values, order = (found.tolist() for found in row.sort(descending=True, stable=True))
        named = dict(zip((classes[label] for label in order), values, strict=True))
        outline = None if border is None else view.to_original(border)
        predictions.append(Prediction(order[0], classes[order[0]], values[0], named, theta_of, pose, outline))
    return predictions


def poses_of(transformer: SpatialTransformer, theta: Tensor) -> list[dict[str, float]]:
    """Rotation, scale and shift of each θ (N, P), see `Prediction.pose`."""
    parts = transformer.decompose(theta)
    columns = {
        "rotation_degrees": parts["rotation"].rad2deg(),
        **{name: parts[name] for name in ("scale", "shift_x", "shift_y")},
    }
    return [dict(zip(columns, row, strict=True)) for row in torch.stack(list(columns.values()), dim=1).cpu().tolist()]


def in_batches(items: Iterable[Item], batch_size: int) -> Iterator[list[Item]]:
    """Lists of `batch_size` items, the last one shorter."""
    left = iter(items)
    while batch := list(islice(left, batch_size)):
        yield batch
