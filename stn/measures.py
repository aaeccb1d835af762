"""What the scores of a whole set say: accuracy, loss, confusion, calibration, and the worst mistakes."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

BINS = 15  # of the calibration, as usual since Guo et al. 2017


def measure(scores: Tensor, labels: Tensor, classes: Sequence[str], worst: int) -> dict[str, Any]:
    """All numbers below, of scores (N, K) and labels (N,) on the CPU.

    worst: how many of the worst mistakes are listed.
    The confusion has a row for each true class, and a column for each predicted one.
    """
    confusion = multiclass_confusion_matrix(scores, labels, num_classes=len(classes))
    bins = calibration(scores, labels)
    return {
        "images": len(labels),
        "accuracy": accuracy(scores, labels),
        **({"top_5_accuracy": accuracy(scores, labels, top_k=5)} if len(classes) > 5 else {}),
        "loss": F.cross_entropy(scores, labels).item(),
        "expected_calibration_error": expected_calibration_error(bins),
        "calibration": bins,
        "classes": by_class(confusion, classes),
        "confusion": confusion.tolist(),
        "mistakes": worst_mistakes(scores, labels, classes, worst),
    }


def accuracy(scores: Tensor, labels: Tensor, top_k: int = 1) -> float:
    """The share of images whose label is among the `top_k` classes with the highest scores (N, K)."""
    return multiclass_accuracy(scores, labels, num_classes=scores.shape[1], average="micro", top_k=top_k).item()


def ratio(part: Tensor | float, whole: Tensor | float) -> float | None:
    """part / whole, or None if that is not finite, as JSON has no NaN."""
    found = torch.as_tensor(part, dtype=torch.float64) / torch.as_tensor(whole, dtype=torch.float64)
    return found.item() if found.isfinite() else None


def by_class(confusion: Tensor, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each class its number of images, accuracy, precision and recall; None where no image counts.

    The accuracy of a class is its recall: the share of its images that are found. Both names are in use.
    """
    found = {}
    for name, right, count, predicted in zip(
        classes, confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0), strict=True
    ):
        recall = ratio(right, count)
        found[name] = {"count": int(count), "accuracy": recall}
        found[name] |= {"precision": ratio(right, predicted), "recall": recall}
    return found


def calibration(scores: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """The reliability diagram (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2).

    Images are put into `BINS` bins by the probability of the predicted class; each bin is open below. It has the number
    of its images, their mean probability and their accuracy, which are None if it is empty.
    """
    # torchmetrics has no diagram, and its error puts probabilities of exactly 1 into a bin of their own.
    probability, predicted = scores.double().softmax(dim=1).max(dim=1)
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    index = torch.bucketize(probability, edges[1:-1])
    found = []
    for number, (low, high) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
        inside = index == number
        count = int(inside.sum())
        of_bin = {"from": low, "to": high, "count": count, "probability": ratio(probability[inside].sum(), count)}
        found.append(of_bin | {"accuracy": ratio((predicted == labels)[inside].sum(), count)})
    return found


def expected_calibration_error(bins: Sequence[dict[str, Any]]) -> float:
    """The mean distance between probability and accuracy in the bins of `calibration`, weighted by their images."""
    full = [one for one in bins if one["count"]]
    off = sum(one["count"] * abs(one["accuracy"] - one["probability"]) for one in full)
    return float(off / sum(one["count"] for one in full))


def worst_mistakes(scores: Tensor, labels: Tensor, classes: Sequence[str], count: int) -> list[dict[str, Any]]:
    """The images that are classified wrongly with the highest loss, the worst one first.

    image: its place in the split, from 0. class: the true one. probability: of the predicted class.
    """
    losses = F.cross_entropy(scores, labels, reduction="none")
    probability, predicted = scores.softmax(dim=1).max(dim=1)
    wrong = (predicted != labels).nonzero().flatten()
    order = wrong[losses[wrong].argsort(descending=True, stable=True)][:count]
    return [
        {
            "image": index,
            "class": classes[int(labels[index])],
            "predicted": classes[int(predicted[index])],
            "probability": probability[index].item(),
            "loss": losses[index].item(),
        }
        for index in order.tolist()
    ]
