"""Evaluates the network of a run on a split of its data, or of other data of the same classes."""

import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from omegaconf import DictConfig, OmegaConf
from rich.progress import track
from torch import Tensor

from stn.build import build_trainer, read_data
from stn.callbacks.warp_gallery import spread_over_classes
from stn.check import TTA, check
from stn.data.resident import ResidentDataModule
from stn.errors import InputError, nearest, user_errors
from stn.figures import Reading, readings, to_picture
from stn.layers.warps import nearest_affine
from stn.measures import measure, ratio
from stn.metrics import PoseError, ThetaStatistics
from stn.process import prepare_process
from stn.provenance import provenance
from stn.robustness import SWEEPS, curve
from stn.run import Run
from stn.scoring import Scored, Scorer, score

Split = Literal["test", "val", "train"]
STAGES: dict[Split, str] = {"test": "test", "val": "fit", "train": "fit"}  # what must be read for a split
MOST_MISTAKES = 1000
EXAMPLES = 20  # of images
ANGLES = range(-180, 181, 15)  # degrees


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a network makes of a set of images.

    numbers: the content of evaluation.json.
    mistakes: the worst ones, with what the network's first transformer reads of them.
    examples: the same of the first images of all classes in turn.
    class_means: the mean image of each class as it is and as the transformer on the input reads it, each
        (K, C, H, W) in [0, 1], NaN for a class without images. None if no transformer is on the input.
    """

    numbers: dict[str, Any]
    mistakes: list[Reading]
    examples: list[Reading]
    class_means: tuple[Tensor, Tensor] | None


def evaluate(
    run: Run,
    config: DictConfig,
    split: Split = "test",
    tta: TTA | None = None,
    sweeps: Sequence[str] = (),
    worst: int = 20,
    sweep_images: int | None = None,
) -> Evaluation:
    """Evaluates a run's network on a split of the data of a config, on one device. It writes nothing.

    split: "test"; "val", which training held out; or "train", without augmentation.
    tta: the views of each image, see `Classifier`. If None, those of the config, or else of the network.
    sweeps: names of `SWEEPS`, for each of which the accuracy on warped images is found.
    worst: how many of the worst mistakes are kept.
    sweep_images: of at most how many images the sweeps are, the same ones each time; None: of all.
    Raises InputError for data that does not suit the network, and for values that are not possible.
    """
    for name in sweeps:
        if name not in SWEEPS:
            raise InputError(f"sweep={name}: there is no such sweep; {nearest(name, SWEEPS)}")
    if not 0 <= worst <= MOST_MISTAKES:
        raise InputError(f"worst={worst} must be a whole number from 0 to {MOST_MISTAKES}")
    config = on_one_device(config)
    check(config)
    prepare_process(config)
    trainer = build_trainer(config)
    data = read_data(run.data(config, trainer), STAGES[split])
    data.fix(split)
    with user_errors("tta"):
        scorer = Scorer(run.classifier, trainer, tta or config.tta)
    batches = limited(list(data.eval_batches(split)), getattr(trainer, f"limit_{split}_batches"))
    show = sys.stdout.isatty()
    begun = time.monotonic()
    scored = score(scorer, track(batches, f"split={split}", transient=True, disable=not show))
    swept = some_of(batches, sweep_images or len(scored.labels))
    share = sum(len(labels) for _, labels in swept) / len(scored.labels)
    times = sum(len(SWEEPS[name].values) for name in sweeps)
    if (minutes := (time.monotonic() - begun) * times * share / 60) >= 1:
        print(f"the accuracy on images warped in {times} ways takes about {minutes:.0f} min")
    measured = measure(scored.scores, scored.labels, run.classes, worst)
    numbers = {
        "run": str(run.folder),
        "checkpoint": str(run.checkpoint),
        "epoch": run.epoch,
        "split": split,
        "options": {"tta": scorer.classifier.tta, "sweep": list(sweeps), "worst": worst},
        "data": OmegaConf.to_container(config.data, resolve=True),
        **measured,
        "transformers": transformer_numbers(scorer, scored, data, split),
        "accuracy_by_angle": accuracy_by_angle(scored, data.figures.get(split)),
        "sharpening": sharpening(scorer, scored),
        "robustness": {name: curve(scorer.scores, swept, name, show=show) for name in sweeps},
        "robustness_images": sum(len(labels) for _, labels in swept) if sweeps else 0,
        "provenance": provenance(trainer.strategy.root_device),
    }
    means = (scored.before.compute()[0], scored.after.compute()[0]) if scored.before and scored.after else None
    mistakes = [one["image"] for one in measured["mistakes"]]
    captions = [f"{one['probability']:.0%} {one['predicted']}\nis {one['class']}" for one in measured["mistakes"]]
    examples = spread_over_classes(scored.labels, EXAMPLES)
    return Evaluation(
        numbers,
        shown(scorer, scored, data.images[split], mistakes, captions),
        shown(scorer, scored, data.images[split], examples.tolist(), example_captions(scored, examples, run.classes)),
        means,
    )


def on_one_device(config: DictConfig) -> DictConfig:
    """A copy of a run's config without what only training needs: callbacks, loggers, several devices, compilation."""
    changed = config.copy()
    changed.callbacks, changed.logger, changed.compile = {}, {}, None
    changed.trainer.devices, changed.trainer.strategy = 1, "auto"
    if "num_nodes" in changed.trainer:
        changed.trainer.num_nodes = 1
    return changed


def some_of(batches: Sequence[tuple[Tensor, Tensor]], count: int) -> list[tuple[Tensor, Tensor]]:
    """So many images of some batches, chosen at random, but always the same."""
    sizes = [len(labels) for _, labels in batches]
    order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(0))
    chosen = (order.argsort() < count).split(sizes)
    pairs = zip(batches, chosen, strict=True)
    return [(images[which], labels[which]) for (images, labels), which in pairs if which.any()]


def limited(batches: list[Any], limit: int | float) -> list[Any]:
    """The first batches, as Lightning counts a limit: a number of batches, or a share of them."""
    return batches[: limit if isinstance(limit, int) else max(1, int(limit * len(batches)))]


def transformer_numbers(
    scorer: Scorer, scored: Scored, data: ResidentDataModule, split: Split
) -> dict[str, dict[str, float | None]]:
    """For every transformer `ThetaStatistics` and, where the poses are known, `PoseError`."""
    found = {}
    for name, (theta, height, width) in scored.records.items():
        module = scorer.transformers[name]
        statistics = ThetaStatistics(module.to_input)
        statistics.update(theta.float(), height, width)
        values = statistics.compute()
        # The poses are those in the image, so a transformer on a smaller feature map has no error.
        if split in data.figures and (height, width) == data.images[split].shape[2:]:
            error = PoseError(module.to_input, height, width, align_corners=module.align_corners)
            error.update(theta, data.figures[split][: len(theta)], scored.labels)
            values |= error.compute()
        found[name] = {key: ratio(value, 1) for key, value in values.items()}
    return found


def accuracy_by_angle(scored: Scored, figures: Tensor | None) -> list[dict[str, float]]:
    """The accuracy among the images that are turned by about the same angle, see `ANGLES`.

    figures (N, 16, 2): where in each image the `figure_points` are. from, to: in degrees, clockwise.
    It is empty if all images are upright, or their poses unknown.
    """
    if figures is None:
        return []
    figures = figures[: len(scored.labels)].cpu()
    degrees = nearest_affine(figures)["rotation"].rad2deg().round(decimals=3)  # upright ones differ by rounding
    if not degrees.any():
        return []
    right = (scored.scores.argmax(dim=1) == scored.labels).double()
    found = []
    for low, high in itertools.pairwise(ANGLES):
        within = (degrees >= low) & ((degrees < high) | (high == ANGLES[-1]))
        if within.any():
            row = {"from": low, "to": high, "images": int(within.sum()), "accuracy": right[within].mean().item()}
            found.append(row)
    return found


def sharpening(scorer: Scorer, scored: Scored) -> dict[str, Any] | None:
    """How far the transformer on the input aligns the images of each class; None without one.

    variance_before, variance_after: of a pixel among the images of a class, for values in [0, 1]; the mean over the
        pixels and the classes.
    Two other things change the variance: reading between pixels smooths, which lowers it, and a window on parts that
    differ, such as colours, raises it. The alignment is the congealing of Miller et al. 2000, "Learning from One
    Example Through Shared Densities on Transforms".
    """
    if not scored.before or not scored.after:
        return None
    before, after = (means.compute()[1].nanmean() for means in (scored.before, scored.after))
    found = {"variance_before": ratio(before, 1), "variance_after": ratio(after, 1), "ratio": ratio(after, before)}
    return {"transformer": scorer.on_input, **found}


def example_captions(scored: Scored, chosen: Tensor, classes: Sequence[str]) -> list[str]:
    """The predicted class of some images (N,), and below it the true one where it is another."""
    predicted, labels = scored.scores[chosen].argmax(dim=1).tolist(), scored.labels[chosen].tolist()
    return [
        classes[found] if found == label else f"{classes[found]}\nis {classes[label]}"
        for found, label in zip(predicted, labels, strict=True)
    ]


def shown(
    scorer: Scorer, scored: Scored, images: Tensor, chosen: Sequence[int], captions: Sequence[str]
) -> list[Reading]:
    """Some of the images (N, C, H, W) of a split, with what the first transformer reads of them."""
    right = (scored.scores[chosen].argmax(dim=1) == scored.labels[chosen]).tolist()
    if not chosen or not scored.records:
        return [
            Reading(to_picture(image), None, None, caption, known)
            for image, caption, known in zip(images[chosen], captions, right, strict=True)
        ]
    name, transformer = next(iter(scorer.transformers.items()))
    normalization, theta = scorer.classifier.normalization, scored.records[name].theta[chosen]
    return readings(transformer, normalization, theta, images[chosen], captions, right)
