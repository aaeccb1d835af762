"""Draws an evaluation: confusion, calibration, mistakes, class means, and accuracy on warped images."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter
from PIL import Image
from torch import Tensor

from stn.evaluation import Evaluation
from stn.figures import BLUE, GREY, VERMILION, Reading, draw_angles, draw_confusion, sheet, to_picture
from stn.robustness import SWEEPS


def draw(evaluation: Evaluation) -> dict[str, Figure | Image.Image]:
    """All pictures of an evaluation, by the names of their files."""
    numbers = evaluation.numbers
    about = f"{numbers['split']}, {numbers['images']:,} images"
    pictures: dict[str, Figure | Image.Image] = {
        "confusion.png": draw_confusion(numbers["confusion"], list(numbers["classes"]), about),
        "calibration.png": draw_calibration(numbers["calibration"], numbers["expected_calibration_error"], about),
        "mistakes.png": sheet(evaluation.mistakes, f"{about}: {mistakes_title(evaluation)}"),
    }
    if evaluation.class_means:
        title = f"{about}: the mean of each class, as it is and as the transformer reads it; "
        title += f"the variance within a class is {numbers['sharpening']['ratio'] or 0:.2f} times that before"
        found = class_means(*evaluation.class_means, list(numbers["classes"]))
        pictures["class_means.png"] = sheet(found, title, ("before", "after"))
    if len(numbers["accuracy_by_angle"]) > 1:
        pictures["angle.png"] = draw_angles({"": [numbers["accuracy_by_angle"]]}, about)
    for name, curve in numbers["robustness"].items():
        pictures[f"robustness_{name}.png"] = draw_robustness(name, curve, about)
    return pictures


def mistakes_title(evaluation: Evaluation) -> str:
    """What the picture of the mistakes shows."""
    confusion = evaluation.numbers["confusion"]
    wrong = sum(map(sum, confusion)) - sum(row[index] for index, row in enumerate(confusion))
    return f"the {len(evaluation.mistakes)} worst of {wrong:,} mistakes, by their loss" if wrong else "no mistakes"


def draw_calibration(bins: Sequence[Mapping[str, Any]], error: float, about: str) -> Figure:
    """The accuracy of the images in each bin of the probability of the predicted class, and how many they are."""
    figure = Figure(figsize=(5, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    full = [one for one in bins if one["count"]]
    width = bins[0]["to"] - bins[0]["from"]
    middles = [(one["from"] + one["to"]) / 2 for one in full]
    upper.bar(middles, [one["accuracy"] for one in full], width, color=BLUE, edgecolor="white", label="accuracy")
    points = [one["probability"] for one in full], [one["accuracy"] for one in full]
    upper.plot(*points, "o", color=VERMILION, markeredgecolor="white", label="at the mean probability")
    upper.plot([0, 1], [0, 1], "--", color=GREY, label="perfectly calibrated")
    upper.set(ylabel="accuracy", ylim=(0, 1.02), title=f"{about}\nexpected calibration error {error:.2%}")
    upper.yaxis.set_major_formatter(PercentFormatter(1, 0))
    lower.bar(middles, [one["count"] for one in full], width, color=GREY, edgecolor="white")
    lower.set(xlabel="probability of the predicted class", ylabel="images", xlim=(0, 1))
    lower.xaxis.set_major_formatter(PercentFormatter(1, 0))
    lower.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure


def class_means(before: Tensor, after: Tensor, classes: Sequence[str]) -> list[Reading]:
    """The mean images (K, C, H, W) of all classes that have images."""
    return [
        Reading(picture(mean), None, picture(read), name)
        for mean, read, name in zip(before, after, classes, strict=True)
        if mean.isfinite().all()
    ]


def picture(image: Tensor) -> Image.Image:
    """An image (C, H, W) in [0, 1]."""
    return to_picture((image * 255).round().clamp(0, 255).byte())


def draw_robustness(name: str, curve: Sequence[Mapping[str, float]], about: str) -> Figure:
    """The accuracy for each value of a sweep."""
    sweep = SWEEPS[name]
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    values = [point["value"] for point in curve]
    axes.plot(values, [point["accuracy"] for point in curve], "o-", color=BLUE, markersize=4)
    axes.axvline(sweep.identity, color=GREY, linestyle="--", linewidth=1)
    axes.set(xlabel=f"images {sweep.what}", ylabel="accuracy", ylim=(0, 1.02), title=about)
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.grid(alpha=0.3)
    if name == "scale":
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_major_locator(FixedLocator(values[:: 3 if name == "rotation" else 1]))
    axes.xaxis.set_minor_locator(NullLocator())
    return figure
