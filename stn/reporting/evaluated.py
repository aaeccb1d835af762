"""The sections of a report that show an evaluation: classes, confusion, calibration, mistakes and robustness."""

import io
import math
from collections.abc import Mapping
from html import escape
from typing import Any

import torch
from PIL import Image

from stn.evaluation import Evaluation
from stn.evaluation_figures import class_means, mistakes_title
from stn.evaluation_files import share, tidy
from stn.figures import MOST_COUNTS, draw_confusion
from stn.metrics import QUANTITIES
from stn.reporting.charts import Axis, Bar, Line, chart, fitted_axis, share_axis
from stn.reporting.parts import Section, cell, image, paragraph, scrolled, table
from stn.robustness import SWEEPS

MOST_CLASSES = 50  # that are listed
TICKS = {"rotation": 6, "scale": 2, "shift_x": 5}  # one value in so many has a label


def transformers(numbers: Mapping[str, Any]) -> str:
    """What each transformer does on average."""
    names = {"rotation_degrees": "rotation (°)", "scale": "scale", "shift_x_pixels": "shift x (pixels)"}
    names |= {"shift_y_pixels": "shift y (pixels)"}
    rows, with_pose = [], any("pose_error_pixels" in values for values in numbers["transformers"].values())
    for name, values in numbers["transformers"].items():
        row = [f"{three_digits(values[f'{key}_mean'])} ± {three_digits(values[f'{key}_spread'])}" for key in QUANTITIES]
        row += [share(values["lost"])] + [three_digits(values.get("pose_error_pixels"))] * with_pose
        rows.append([name, *row])
    head = ["transformer", *(names[key] for key in QUANTITIES), "images lost", *["pose error (pixels)"] * with_pose]
    return table(head, rows, "What each transformer does") + paragraph(
        "Mean ± standard deviation over the test images. A scale below 1 zooms in. An image is lost if more than half "
        "of what is read lies beyond its border, or if it shrinks to a line or a point."
    )


def three_digits(value: float | None) -> str:
    """A number with three digits."""
    return "–" if value is None else f"{tidy(value):.3g}"


def means(evaluation: Evaluation) -> Section:
    """The mean image of each class, before and after the transformer."""
    if evaluation.class_means is None:
        return Section("means", "Class means", paragraph("No transformer reads the images themselves."))
    pixels = torch.cat([part.flatten() for part in evaluation.class_means])
    low, high = (end(pixels[pixels.isfinite()]) for end in (torch.min, torch.max))
    before, after = ((part - low) / (high - low).clamp(min=1e-6) for part in evaluation.class_means)
    found = class_means(before, after, list(evaluation.numbers["classes"]))[:MOST_CLASSES]
    ratio = evaluation.numbers["sharpening"]["ratio"]
    said = (
        "Left: the mean of the images of each class. Right: the mean of what the transformer reads of them. The better "
        "the images are aligned, the sharper is the right one. The contrast is raised, by as much in all of them."
    )
    if ratio is not None:
        said += (
            f" The variance within a class is {ratio:.2f} times that before; where the window is smaller, what differs "
            "among the images fills more of it, which raises the variance."
        )
    cells = "".join(cell(one, "beside", ("mean of the originals", "mean of what is read")) for one in found)
    return Section("means", "Class means", paragraph(said) + f'<div class="cells pairs">{cells}</div>')


def classes(numbers: Mapping[str, Any]) -> Section:
    """The accuracy of each class, as a bar and as a number."""
    found, said = dict(numbers["classes"]), ""
    if len(found) > MOST_CLASSES:
        lowest = sorted(found, key=lambda name: (found[name]["accuracy"] is None, found[name]["accuracy"]))
        said = paragraph(f"The {MOST_CLASSES} classes with the lowest accuracy, of {len(found)}.")
        found = {name: found[name] for name in lowest[:MOST_CLASSES]}
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{one["count"]:,}</td>'
        f'<td class="share" style="--share:{one["accuracy"] or 0:.4f}"><span>{share(one["accuracy"])}</span></td>'
        f"<td>{share(one['precision'])}</td></tr>"
        for name, one in found.items()
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("class", "images", "accuracy", "precision"))
    whole = f'<table class="wide"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    box = scrolled(whole, "Accuracy of each class")
    explained = "Accuracy: the share of the images of a class that are found. Precision: the share of the images taken "
    return Section("classes", "Each class", said + box + paragraph(f"{explained}for a class that belong to it."))


def confusion(numbers: Mapping[str, Any]) -> Section:
    """How often the images of each class are taken for each class."""
    names, counts = list(numbers["classes"]), numbers["confusion"]
    wrong = [
        (count, names[row], names[column])
        for row, line in enumerate(counts)
        for column, count in enumerate(line)
        if count and row != column
    ]
    wrong.sort(key=lambda one: -one[0])
    often = "; ".join(f"{true} for {taken} ({count:,})" for count, true, taken in wrong[:3])
    said = f"Most often it takes {often}." if wrong else "No image is taken for one of another class."
    said = f"Rows: the true classes. Columns: the classes that the network sees. {said}"
    if len(names) > MOST_COUNTS:
        content = io.BytesIO()
        draw_confusion(counts, names, "").savefig(content, format="png", dpi=80)
        picture = image(Image.open(content).convert("RGB"), f"Confusion matrix. {said}")
        return Section("confusion", "Confusion", paragraph(said) + scrolled(picture, "Confusion matrix", "sheet"))
    rows = []
    for row, (name, line) in enumerate(zip(names, counts, strict=True)):
        cells = []
        for column, count in enumerate(line):
            depth = math.sqrt(count / max(1, sum(line)))  # of the share, so that rare mistakes are seen
            kind = "hit" if row == column else "miss"
            cells.append(f'<td class="{kind}" style="--depth:{depth:.0%}">{count:,}</td>' if count else "<td></td>")
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in names)
    top = f'<thead><tr><td class="corner"></td>{head}</tr></thead>'
    whole = f'<table class="confusion">{top}<tbody>{"".join(rows)}</tbody></table>'
    return Section("confusion", "Confusion", paragraph(said) + scrolled(whole, "Confusion matrix"))


def calibration(numbers: Mapping[str, Any]) -> Section:
    """Whether the network is right as often as its probabilities say."""
    error, bins = numbers["expected_calibration_error"], [one for one in numbers["calibration"] if one["count"]]
    x = share_axis("probability of the predicted class")
    right, many = [], []
    for one in bins:
        about = (
            f"{one['from']:.0%} to {one['to']:.0%}: {one['count']:,} images, of which {one['accuracy']:.2%} are right"
        )
        right.append(Bar(one["from"], one["to"], one["accuracy"], about))
        many.append(Bar(one["from"], one["to"], one["count"], about))
    rule = Line("rule", [(0, 0), (1, 1)])
    said = (
        f"The accuracy of the images, by the probability of the predicted class; the calibration error is {error:.2%}"
    )
    charts = chart(x, share_axis("accuracy"), [*right, rule], said)
    charts += chart(x, fitted_axis("images", [0, *(one.height for one in many)]), many, "Images by probability")
    explained = (
        f"The expected calibration error is {share(error)}: accuracy and probability differ by this on average, in "
        f"{len(numbers['calibration'])} bins of the probability. Bars that reach above the dashed line: the network is "
        "right more often than it says."
    )
    return Section("calibration", "Calibration", paragraph(explained) + f'<div class="charts">{charts}</div>')


def mistakes(evaluation: Evaluation) -> Section:
    """The worst mistakes, with what the transformer reads of them."""
    title = mistakes_title(evaluation)
    said = f"{title[0].upper()}{title[1:]}. "
    if evaluation.mistakes:
        said += "The first line is the class that the network sees, with its probability; the second one is the truth."
    cells = "".join(cell(one, "beside") for one in evaluation.mistakes)
    return Section("mistakes", "The worst mistakes", paragraph(said) + f'<div class="cells pairs">{cells}</div>')


def robustness(numbers: Mapping[str, Any]) -> Section:
    """The accuracy on images that are turned, enlarged and moved."""
    charts = []
    for name, curve in numbers["robustness"].items():
        sweep = SWEEPS[name]
        place = math.log2 if name == "scale" else float
        ticks = {place(value): f"{value:g}" for value in sweep.values[:: TICKS[name]]}
        x = Axis(f"images {sweep.what}", place(sweep.values[0]), place(sweep.values[-1]), ticks)
        points = [(place(one["value"]), one["accuracy"]) for one in curve]
        about = [(place(one["value"]), f"{one['value']:g}: {one['accuracy']:.2%}") for one in curve]
        lowest = min(curve, key=lambda one: one["accuracy"])
        said = f"Accuracy on images {sweep.what}: at least {lowest['accuracy']:.2%}, at {lowest['value']:g}"
        rule = Line("rule", [(place(sweep.identity), 0), (place(sweep.identity), 1)])
        charts.append(chart(x, share_axis("accuracy"), [rule, Line("val", points)], said, about))
    some = f"{numbers['robustness_images']:,} of " * (numbers["robustness_images"] < numbers["images"])
    said = f"The accuracy on {some}the test images after each of them is turned, enlarged or moved; where they end, "
    said += "their border goes on. The dashed line is the images as they are."
    if not charts:
        said = "It was left out of this report by robustness=false."
    body = f'<div class="charts">{"".join(charts)}</div>' if charts else ""
    return Section("robustness", "Robustness", paragraph(said) + body)
