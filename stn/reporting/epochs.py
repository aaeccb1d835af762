"""What a run has kept of its epochs: the curves of accuracy and loss, and the pictures of the warps."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from stn.callbacks.history import METRICS
from stn.errors import user_errors
from stn.figures import evenly
from stn.reporting.charts import Line, chart, fitted_axis
from stn.reporting.parts import Section, image, paragraph, reduced, scrolled, table
from stn.results import curve

MOST_FRAMES = 30  # pictures, of all transformers together
LARGEST_FRAME = 1600  # its longest side in pixels
STAGES = {"train": "training", "val": "validation"}
FORMS = {"accuracy": ".2%", "loss": ".4f"}

Epochs = Sequence[Mapping[str, float]]


def read_epochs(folder: Path) -> Epochs:
    """The metrics of each epoch, see `stn.results.curve`; NaN for those that were not measured.

    Raises InputError for a file that cannot be read.
    """
    with user_errors(str(folder / "metrics.csv"), KeyError):
        return [dict.fromkeys(METRICS, math.nan) | row for row in curve(folder)]


def described(row: Mapping[str, float], metric: str) -> str:
    """A metric of an epoch, of training and validation, in words."""
    shown = [f"{name} {formatted(row[f'{stage}/{metric}'], metric)}" for stage, name in STAGES.items()]
    return f"epoch {row['epoch']}: {', '.join(shown)}"


def formatted(value: float, metric: str) -> str:
    """A value of a metric as text."""
    return "–" if math.isnan(value) else f"{value:{FORMS[metric]}}"


def curves(epochs: Epochs) -> Section:
    """Accuracy and loss of each epoch as charts and, for those who want the numbers, as a table."""
    if not epochs:
        return Section("curves", "Training", paragraph("The run has no metrics.csv, so there are no curves."))
    charts = []
    x = fitted_axis("epoch", [row["epoch"] for row in epochs], whole=True)
    for metric in FORMS:
        lines = [Line(stage, [(row["epoch"], row[f"{stage}/{metric}"]) for row in epochs]) for stage in STAGES]
        values = [value for line in lines for _, value in line.points if math.isfinite(value)]
        y = fitted_axis(metric, values or [0], shares=metric == "accuracy")
        label = f"The {metric} of each epoch. Last {described(epochs[-1], metric)}"
        charts.append(chart(x, y, lines, label, [(row["epoch"], described(row, metric)) for row in epochs]))
    keys = [(stage, metric) for metric in FORMS for stage in STAGES]
    head = ["epoch", *(f"{STAGES[stage]} {metric}" for stage, metric in keys)]
    rows = [
        [str(row["epoch"]), *(formatted(row[f"{stage}/{metric}"], metric) for stage, metric in keys)] for row in epochs
    ]
    numbers = f"<summary>The numbers of each epoch</summary>{table(head, rows, 'The numbers of each epoch')}"
    said = "Training is measured during each epoch, while the weights change; validation after it."
    legend = "".join(f'<li class="{stage}">{name}</li>' for stage, name in STAGES.items())
    shown = f'<ul class="legend">{legend}</ul><div class="charts">{"".join(charts)}</div>'
    return Section("curves", "Training", f"{paragraph(said)}{shown}<details>{numbers}</details>")


def find_frames(folder: Path) -> dict[str, list[tuple[int, Path]]]:
    """The pictures in figures/warps of a run, with their epochs, by transformer: evenly chosen if there are many."""
    found: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for path in folder.glob("figures/warps/*_epoch_*.png"):
        name, _, number = path.stem.rpartition("_epoch_")
        if number.isdecimal():
            found[name].append((int(number), path))
    most = max(2, MOST_FRAMES // max(1, len(found)))
    return {name: evenly(sorted(found[name]), most) for name in sorted(found)}


def galleries(folder: Path, epochs: Epochs) -> str:
    """The pictures of all transformers of a run, one of which is chosen; empty if there are none."""
    accuracies = {int(row["epoch"]): row["val/accuracy"] for row in epochs if not math.isnan(row["val/accuracy"])}
    found = find_frames(folder)
    shown = "".join(gallery(name, frames, accuracies) for name, frames in found.items())
    if len(found) < 2:
        return shown
    options = "".join(f"<option>{escape(name)}</option>" for name in found)
    return f'<div class="choice"><label class="controls">Transformer <select>{options}</select></label>{shown}</div>'


def gallery(name: str, frames: Sequence[tuple[int, Path]], accuracies: Mapping[int, float]) -> str:
    """The pictures of one transformer, of which a slider shows one; without scripts it is the last one.

    accuracies: of validation, by epoch.
    Raises InputError for a file that is not a picture.
    """
    pictures, last = [], len(frames) - 1
    for index, (epoch, path) in enumerate(frames):
        with user_errors(str(path), Image.DecompressionBombError), Image.open(path, formats=["PNG"]) as file:
            picture = reduced(file.convert("RGB"), LARGEST_FRAME)
        when = f"epoch {epoch}" + (f", validation accuracy {accuracies[epoch]:.2%}" if epoch in accuracies else "")
        alt = f"Validation images, and what {name} reads of them, after {when}"
        pictures.append(image(picture, alt, f' data-said="{when}"{" hidden" if index < last else ""}'))
    controls = (
        '<div class="controls"><button type="button">Play</button>'
        f'<input type="range" aria-label="Epoch" min="0" max="{last}" value="{last}"><output></output></div>'
    )
    box = scrolled("".join(pictures), f"Pictures of {name}", "sheet")
    return f'<div class="frames" data-name="{escape(name)}">{controls if last else ""}{box}</div>'
