"""Predicts image files, and writes what was found as tables and pictures."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from stn.check import TTA
from stn.cli import printable
from stn.data.decoding import converted, naming
from stn.errors import InputError, user_errors
from stn.figures import Reading, readings, sheet, side_by_side, to_picture
from stn.layers import transformers
from stn.prediction import Prediction, in_batches, predict_views
from stn.run import Run
from stn.training import write_json
from stn.views import Crop, View, background, opened, view_of

SHOWN = 20  # rows on the screen
LARGEST_SHEET = 100  # images in overview.png
SIDE = 256  # pixels of an image in a picture

Item = tuple[str, View, Image.Image]  # a file, what the network takes of it, and the small original


@dataclass(frozen=True)
class Found:
    """What was found in files.

    rows: for each file that was read, its path as "file", its most probable classes as "probabilities", by their
        names, its "pose", see `Prediction`, and its "picture" within the output's folder, if it has one.
    broken: why the other files could not be read. overview: the first readings.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    overview: list[Reading] = field(default_factory=list)


def prepare(run: Run, topk: int | None, tta: TTA | None, device: str, batch_size: int) -> int:
    """Sets the views that the network scores, and its device. Returns how many classes are told of each image.

    Raises InputError for values out of range, and for a network that cannot predict files.
    """
    classes = len(run.classes)
    if topk is not None and not 1 <= topk <= classes:
        raise InputError(f"topk={topk} must lie between 1 and {classes}, the number of classes of {run.checkpoint}")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} must be 1 or more")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device=cuda: torch finds no GPU here; use device=auto, which takes what there is, or cpu")
    with user_errors("tta"):
        run.classifier.tta = tta or run.classifier.tta
    run.classifier.to("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    run.predict(Image.new("L", (1, 1)))  # before anything is written
    return topk or min(5, classes)


def predict_files(
    run: Run,
    files: Sequence[str],
    folder: Path,
    options: Mapping[str, Any],
    topk: int,
    crop: Crop | None,
    batch_size: int,
    pictures: bool,
) -> Found:
    """Predicts files, and writes predictions.csv, predictions.json and, with `pictures`, pictures into a folder.

    options: of the command, for predictions.json. If it is interrupted, it writes what was found so far.
    Raises InputError for a folder that cannot be written any more.
    """
    about = {"run": str(run.folder), "checkpoint": str(run.checkpoint), "epoch": run.epoch, "options": options}
    found = Found()
    console = Console()
    progress = track(files, "predicting", console=console, transient=True, disable=not console.is_terminal)
    with writing(folder):
        try:
            for batch in in_batches(read_files(run, progress, crop, found.broken), batch_size):
                predictions = predict_views(run.classifier, [view for _, view, _ in batch])
                for (path, _, _), prediction in zip(batch, predictions, strict=True):
                    top = dict(islice(prediction.probabilities.items(), topk))
                    found.rows.append({"file": path, "probabilities": top, "pose": prediction.pose})
                if pictures:
                    draw(found, folder, readings_of(run, batch, predictions), len(str(len(files))))
        finally:
            write_tables(found, folder, about, topk)
            if found.overview:
                title = printable(f"{count(found)}, {run.checkpoint}, epoch {run.epoch}")
                sheet(found.overview, title, ("original", "seen")).save(folder / "overview.png")
    return found


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raises InputError if the disk is full, or the folder has gone."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder} cannot be written any more: {error.strerror or error}") from error


def read_files(run: Run, files: Iterable[str], crop: Crop | None, broken: dict[str, str]) -> Iterator[Item]:
    """Reads files one by one; what is wrong with a file goes into `broken`."""
    behind = background(run.classifier)
    for path in files:
        try:
            with naming(path):
                image = opened(path)
                view = view_of(image, run.classifier, crop)
                original = converted(image, 3, behind)
                original.thumbnail((SIDE, SIDE))
        except ValueError as error:
            broken[path] = str(error)
        else:
            yield path, view, original


def readings_of(run: Run, batch: Sequence[Item], predictions: Sequence[Prediction]) -> list[Reading]:
    """What the first transformer reads of each image of a batch; without one, what the network takes."""
    captions = [printable(f"{prediction.probability:.1%} {prediction.name}") for prediction in predictions]
    pixels = torch.stack([view.pixels for _, view, _ in batch]).to(run.classifier.device)
    seen: list[Image.Image | None] = [to_picture(image) for image in pixels]
    thetas = [prediction.theta for prediction in predictions if prediction.theta is not None]
    for transformer in islice(transformers(run.classifier.net).values(), 1):
        theta = torch.stack(thetas).to(pixels.device)
        found = readings(transformer, run.classifier.normalization, theta, pixels, captions)
        seen = [reading.seen for reading in found]
    return [
        Reading(original, prediction.outline, picture, caption)
        for (_, _, original), prediction, picture, caption in zip(batch, predictions, seen, captions, strict=True)
    ]


def draw(found: Found, folder: Path, batch: Sequence[Reading], digits: int) -> None:
    """Draws a picture for each of the last rows."""
    (folder / "pictures").mkdir(exist_ok=True)
    start = len(found.rows) - len(batch)
    for number, reading in enumerate(batch, start):
        row = found.rows[number]
        # Numbered, since files in two folders may have the same name.
        row["picture"] = f"pictures/{number + 1:0{digits}}_{Path(row['file']).stem[:40]}.png"
        side_by_side(reading, SIDE).save(folder / row["picture"])
    found.overview.extend(batch[: LARGEST_SHEET - len(found.overview)])


def count(found: Found) -> str:
    """How many images the overview has, in words."""
    number, drawn = len(found.rows), len(found.overview)
    return f"the first {drawn} of {number:,} images" if drawn < number else f"{number} image{'s' * (number > 1)}"


def write_tables(found: Found, folder: Path, about: Mapping[str, Any], topk: int) -> None:
    """Writes predictions.csv, a row for each file, and predictions.json."""
    broken = [{"file": path, "reason": reason} for path, reason in found.broken.items()]
    write_json(folder / "predictions.json", {**about, "predictions": found.rows, "broken": broken})
    # A file name may be no text, on Linux any bytes.
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        table = csv.writer(file, lineterminator="\n")
        later = [name for rank in range(2, topk + 1) for name in (f"class_{rank}", f"probability_{rank}")]
        pose = list(found.rows[0]["pose"]) if found.rows else []
        table.writerow(["file", "class", "probability", *later, *pose])
        for row in found.rows:
            named = [value for name, value in row["probabilities"].items() for value in (name, f"{value:.6f}")]
            table.writerow([row["file"], *named, *(f"{value:.4f}" for value in row["pose"].values())])


def show(found: Found, folder: Path, others: int) -> None:
    """Prints the first rows, what was left out, and where everything is."""
    table = Table("file", "class", "probability")
    for row in found.rows[:SHOWN]:
        name, probability = next(iter(row["probabilities"].items()))
        table.add_row(*map(Text, (printable(row["file"]), printable(name), f"{probability:.1%}")))
    if found.rows:
        Console().print(table)
    if len(found.rows) > SHOWN:
        print(f"and {len(found.rows) - SHOWN:,} more, in predictions.csv")
    if others:
        print(f"{others:,} file{'s are no images' if others > 1 else ' is no image'}, by the extension")
    shown = ["predictions.csv", "predictions.json"]
    if found.overview:
        shown += [f"overview.png ({count(found)})", "pictures/"]
    print(printable(f"everything is in {folder}: {', '.join(shown)}"))
    for sentence in found.broken.values():
        print(printable(sentence), file=sys.stderr)
