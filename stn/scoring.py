"""One pass of a run's network over a set: the scores, θ of every transformer, and the mean image of each class."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import Tensor

from stn.check import TTA
from stn.classifier import Classifier
from stn.errors import InputError
from stn.layers import NotFiniteError, SpatialTransformer, ThetaRecord, recording, transformers
from stn.metrics import ClassMeans


class Scorer:
    """A copy of a network on the device of a trainer and in its precision.

    tta: the views of each image, see `Classifier`; the network's own if None.
    transformers: of the network, by name. on_input: the name of the first one if it is on the image, otherwise None.
    """

    def __init__(self, classifier: Classifier, trainer: pl.Trainer, tta: TTA | None = None) -> None:
        self.precision = trainer.precision_plugin
        copied = self.precision.convert_module(deepcopy(classifier)).to(trainer.strategy.root_device)
        assert isinstance(copied, Classifier)
        self.classifier = copied
        self.classifier.tta = tta or classifier.tta
        self.transformers: dict[str, SpatialTransformer] = transformers(copied.net)
        first_part, _ = next(copied.net.named_children())
        name = next(iter(self.transformers), "")
        self.on_input = name if name.partition(".")[0] == first_part else None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, dict[str, ThetaRecord]]:
        """The scores (N, K) of images (N, C, H, W) uint8, and θ of every transformer for the images themselves."""
        with self.precision.forward_context(), recording(self.classifier.net) as records:
            scores = finite_scores(self.classifier, images)
        return scores, {name: passes[0] for name, passes in records.items()}  # the image is the first of its views

    def scores(self, images: Tensor) -> Tensor:
        """The scores alone."""
        return self(images)[0]


def finite_scores(classifier: Classifier, images: Tensor) -> Tensor:
    """The scores (N, K) of images (N, C, H, W) uint8. Raises InputError for a network that has diverged."""
    try:
        scores: Tensor = classifier(images)
        if not scores.isfinite().all():
            raise NotFiniteError("the scores are not finite")
    except NotFiniteError as error:
        raise InputError("the network has diverged, its scores are not finite: give another checkpoint") from error
    return scores


@dataclass(frozen=True)
class Scored:
    """What was found for the images of a set.

    scores (N, K), labels (N,): on the CPU. records: θ (N, P) of every transformer, by its name.
    before, after: the class means of the images and of what the transformer on the input reads; None without one.
    """

    scores: Tensor
    labels: Tensor
    records: dict[str, ThetaRecord]
    before: ClassMeans | None
    after: ClassMeans | None


@torch.no_grad()
def score(scorer: Scorer, batches: Iterable[tuple[Tensor, Tensor]]) -> Scored:
    """Scores batches of images (N, C, H, W) uint8 with labels (N,). It keeps no image."""
    found: list[tuple[Tensor, Tensor, dict[str, ThetaRecord]]] = []
    classes = len(scorer.classifier.hparams["classes"])
    before, after = (ClassMeans(classes), ClassMeans(classes)) if scorer.on_input else (None, None)
    for images, labels in batches:
        scores, records = scorer(images)
        found.append((scores.cpu(), labels.cpu(), records))
        if before and after and scorer.on_input:
            before.update(images / 255, labels)
            normalization = scorer.classifier.normalization
            transformer, theta = scorer.transformers[scorer.on_input], records[scorer.on_input].theta
            after.update(normalization.undo(transformer.transform(normalization(images), theta)), labels)
    every_scores, every_labels, every_records = zip(*found, strict=True)
    records = {
        name: one._replace(theta=torch.cat([of_batch[name].theta for of_batch in every_records]))
        for name, one in every_records[0].items()
    }
    return Scored(torch.cat(every_scores), torch.cat(every_labels), records, before, after)
