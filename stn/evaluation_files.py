"""Writes and prints an evaluation."""

import csv
import json
import os
import warnings
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stn.cli import print_table, printable
from stn.config import write
from stn.errors import user_errors
from stn.evaluation import Evaluation
from stn.evaluation_figures import draw
from stn.metrics import POSE_ERRORS

MOST_ROWS = 20  # classes that are printed


def write_files(evaluation: Evaluation, folder: Path) -> None:
    """Writes evaluation.json, evaluation.csv and the pictures into a folder. Raises InputError if it cannot."""
    with user_errors("output"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # it draws boxes for scripts that its font lacks
        write(folder / "evaluation.json", json.dumps(evaluation.numbers, indent=2, allow_nan=False) + "\n")
        with (folder / "evaluation.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["class", "count", "accuracy", "precision", "recall"])
            rows.writerows([name, *numbers.values()] for name, numbers in evaluation.numbers["classes"].items())
        for name, picture in draw(evaluation).items():
            if isinstance(picture, Figure):
                picture.savefig(folder / name, dpi=120)
            else:
                picture.save(folder / name)


def print_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Prints the most important numbers, those of the classes, and where the files are."""
    print_table(headline(evaluation.numbers))
    classes = evaluation.numbers["classes"]
    names = list(classes)
    table = Table("class", "images", "accuracy", "precision")
    if len(names) > MOST_ROWS:
        names = sorted(names, key=lambda name: (classes[name]["accuracy"] is None, classes[name]["accuracy"]))
        names = names[:MOST_ROWS]
        table.caption = f"the {MOST_ROWS} with the lowest accuracy of {len(classes)}; evaluation.csv has all"
    for name in names:
        numbers = classes[name]
        shares = [share(numbers[key]) for key in ("accuracy", "precision")]
        # As a Text, no markup in a name is interpreted.
        table.add_row(Text(printable(name)), f"{numbers['count']:,}", *shares)
    Console().print(table)
    print(f"evaluation.json, evaluation.csv and the pictures are in {os.path.relpath(folder)}")


def share(value: float | None) -> str:
    """A share in %."""
    return "–" if value is None else f"{value:.2%}"


def tidy(value: float) -> float:
    """A number without what is rounding alone: neither 1e-9 nor -0."""
    return round(value, 6) + 0.0


def headline(numbers: dict[str, Any]) -> dict[str, Any]:
    """The most important numbers, by the names under which `print_table` shows them."""
    keys = ("images", "accuracy", "top_5_accuracy", "loss", "expected_calibration_error")
    found = {key: numbers[key] for key in keys if key in numbers}
    found["expected_calibration_error"] = share(found["expected_calibration_error"])
    for name, values in numbers["transformers"].items():
        for key, mean in values.items():
            if key.endswith("_mean"):
                quantity = key.removesuffix("_mean")
                found[f"{name}_{quantity}"] = f"{tidy(mean):.4g} ± {tidy(values[f'{quantity}_spread']):.4g}"
        found[f"{name}_lost"] = share(values["lost"])
        found |= {f"{name}_{key}": values[key] for key in POSE_ERRORS if key in values}
    if numbers["sharpening"]:
        found["variance_within_classes"] = "{variance_before:.4g} → {variance_after:.4g}".format(
            **numbers["sharpening"]
        )
    for name, curve in numbers["robustness"].items():
        lowest = min(curve, key=lambda point: point["accuracy"])
        found[f"lowest_in_{name}"] = f"{lowest['accuracy']:.2%} at {lowest['value']:g}"
    return found
