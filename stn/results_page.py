"""Makes docs/results.md, its pictures, and the tables of README from the files in results/."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from stn.errors import InputError
from stn.figures import BLUE, VERMILION, draw_angles
from stn.results import RESULTS, Result, read_results
from stn.results_tables import UNMEASURED, accuracies, arms, changes, colocalized, digits, gains, little, systems, traps

PAGE, README, PICTURE = Path("docs/results.md"), Path("README.md"), Path("docs/published.png")
ANGLES = Path("docs/angle.png")
MARKS = ("<!-- made from results/ by python -m stn.record -->", "<!-- end -->")


def make_result_pages() -> None:
    """Writes docs/results.md, its picture, and the table of README."""
    results = read_results()
    PAGE.write_text(page(results), encoding="utf-8")
    README.write_text(with_tables(README, front_page(results)), encoding="utf-8")
    draw_published(results).savefig(PICTURE, dpi=120)
    draw_arms(results).savefig(ANGLES, dpi=120)


def front_page(results: Mapping[str, Sequence[Result]]) -> str:
    """The tables of README."""
    return f"{accuracies(results)}\n\n{gains(results, ['does_it_help', 'clutter'])}".strip()


def page(results: Mapping[str, Sequence[Result]]) -> str:
    """The text of docs/results.md."""
    text = (
        "# Results\n\n"
        "Made by `python -m stn.record` from the files in `results/`: each holds the metrics, the whole config, the "
        "command, the commit, the machine, the versions and the curve of one run.\n\n"
        "On CIFAR-10 where no other set is named: the original images, but for 93 of the 60,000 (20 of them in the "
        "test set), which are JPEG-compressed. Where the shortest time has 1 thread, the machine did other work "
        "meanwhile.\n\n"
        f"## Accuracy\n\n{accuracies(results)}\n\n"
        "`default` was run by the command in its file, before it was the default; a test compares their settings. "
        "`best` computed by one thread in its first 11 epochs, and by two in the others.\n\n"
        "## Where a transformer helps\n\n"
        "`experiment=does_it_help` and `experiment=clutter`: each image is under a random warp, drawn anew for each "
        "batch and fixed in the test set. Gains are in points over the arm `plain` of as many epochs; where there is "
        "none, over one that took longer. p is of a paired t-test where there are three seeds, or more, and of Welch's "
        "otherwise. "
        "Errors of the pose are medians over the test set, and the time is the shortest of the seeds. In the test "
        "every network but `search` sees each image and its mirror image. Where images are turned, `transformer` reads "
        "both in two poses (`tta=poses`); among clutter it has an upright window (`model/warp=attention`). "
        "The runs on images scaled 0.75 to 1 were partly paused or beside tests: their times tell little. They and "
        "those on 96 × 96 were tested among pieces of images of their own class; to mend that changed the other "
        "accuracies among clutter by up to 0.4 points.\n\n"
        f"{arms(results, ['does_it_help', 'clutter'])}\n\n"
        "### Traps\n\n"
        "Each is the arm `transformer` on images turned by up to 90 degrees, 6 epochs, changed as the row says. The "
        "two classes named `traps` are in `tests/traps.py`.\n\n"
        f"{traps(results)}\n\n"
        "## Upright images\n\n"
        "`experiment=upright`: in training each image is under a small random warp, which the transformer learns to "
        "undo; the test images are as they are. `gtsrb-32` is the official split of GTSRB (Stallkamp et al. 2012), "
        "each whole frame resized to 32 × 32 pixels: `train/<class>/<track>_<frame>.webp` and `test/<class>/…`. "
        "Whole tracks are held out for validation.\n\n"
        f"{arms(results, ['upright']) or UNMEASURED}\n\n"
        "## Distorted digits\n\n"
        "`experiment=distorted_mnist`: errors in % on the 10,000 test images, with the lowest and the highest of the "
        "seeds, beside table 1 of Jaderberg et al. 2015, whose networks took 150,000 steps. Both convolutions have 64 "
        "filters. The localization of ST-CNN has batch norm, and that of ST-FCN three linear layers, which learn a "
        "tenth as fast. Behind a transformer, the network sees 28 × 28 pixels. `pose` is a transformer that "
        "learns from the known distortion, with the median errors of the pose that it finds. In P each corner moves "
        "along its diagonal by N(0, 5 pixels), as we read the paper. Where it moves freely, errors are larger than the "
        "published ones, and here smaller ([log.md](log.md)). An empty cell was not measured.\n\n"
        f"{digits(results)}\n\n"
        "## Few images\n\n"
        "`data.subset`: networks that are trained on the number of images given, each under a new distortion in each "
        "epoch. The last epoch is tested.\n\n"
        f"{little(results)}\n\n"
        "## Co-localization\n\n"
        "`python -m stn.colocalize`, see [colocalization.md](colocalization.md): the share of a hundred images whose "
        f"object is found.\n\n{colocalized()}\n\n"
        "## The five published systems\n\n"
        "As published, the test set is scored after every epoch, and the best epoch is picked on it. `lenet_half` is "
        "`eva7_nemani` with a small localization, a third of the work.\n\n"
        f"{systems(results)}\n\n"
        "![The test accuracy of each epoch, measured and published](published.png)\n\n"
        f"## What a change is worth\n\nThe same seeds with and without it.\n\n{changes(results)}\n"
    )
    return text.replace("](results/", "](../results/")


def with_tables(path: Path, tables: str) -> str:
    """The text of a page with the tables between its marks made anew. Raises InputError if a mark is missing."""
    text = path.read_text(encoding="utf-8")
    place = re.compile(f"{re.escape(MARKS[0])}.*?{re.escape(MARKS[1])}", re.DOTALL)
    if len(place.findall(text)) != 1:
        raise InputError(f"{path} must have one place for tables, from {MARKS[0]} to {MARKS[1]}")
    return place.sub(lambda _: f"{MARKS[0]}\n{tables}\n{MARKS[1]}", text)


def draw_arms(results: Mapping[str, Sequence[Result]]) -> Figure:
    """The accuracy against the angle of the image, of the arms of experiment=does_it_help as it is."""
    arms = {
        runs[0]["config"]["arm"]: [run["accuracy_by_angle"] for run in runs if run.get("accuracy_by_angle")]
        for name, runs in results.items()
        if re.fullmatch(r"does_it_help,arm=\w+", name)
    }
    return draw_angles({arm: arms[arm] for arm in ("transformer", "wider", "plain") if arms.get(arm)}, "test images")


def draw_published(results: Mapping[str, Sequence[Result]]) -> Figure:
    """The test accuracy of each epoch of the published systems, measured and published."""
    with (RESULTS / "published_logs.csv").open(encoding="utf-8", newline="") as file:
        logs = list(csv.DictReader(file))
    names = [name for name in json.loads((RESULTS / "published.json").read_text(encoding="utf-8")) if name in results]
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, max(1, len(names)), sharey=True, squeeze=False)[0], names, strict=False):
        for run in results[name]:
            epochs, values = [row["epoch"] for row in run["curve"]], [row["val/accuracy"] for row in run["curve"]]
            axes.plot(epochs, values, color=BLUE, label="measured")
        rows = [row for row in logs if row["system"] == name]
        epochs, values = [int(row["epoch"]) for row in rows], [float(row["test_accuracy"]) for row in rows]
        style = "." if len(rows) < 10 else "-"  # of some only a few epochs are known
        axes.plot(epochs, values, style, color=VERMILION, label="published")
        axes.set(title=name, xlabel="epoch")
        axes.grid(alpha=0.3)
    axes = figure.axes[0]
    axes.set_ylabel("test accuracy")
    axes.legend(loc="lower right")
    return figure
