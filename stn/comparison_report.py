"""Writes a comparison as Markdown, CSV, JSON and a plot, and prints it."""

import csv
import json
import os
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stn.comparison import LEVEL, Comparison, Row
from stn.config import write
from stn.figures import BLUE, GREY, VERMILION
from stn.results import spread, table
from stn.significance import p_in_words

LABEL = 44  # letters of a line beside the plot
TESTS = (
    "by a paired t-test where both have the same three seeds or more, otherwise by Welch's t-test; p after Holm's "
    "correction."
)


def write_report(comparison: Comparison, folder: Path) -> None:
    """Writes comparison.md, .csv, .json and .png into a folder."""
    write(folder / "comparison.md", markdown(comparison))
    write(folder / "comparison.json", json.dumps(content(comparison), indent=2, ensure_ascii=False) + "\n")
    with (folder / "comparison.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [{**row.settings, **figures(row)} for row in comparison.rows]
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(comparison).savefig(folder / "comparison.png", dpi=120)


def print_report(comparison: Comparison, folder: Path) -> None:
    """Prints the table, what is left out, and what can be concluded. folder: where the files are."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    widest = max(len(part) for row in comparison.rows for part in row.name.split(" "))
    shown.add_column("", overflow="fold", min_width=min(widest, 18))
    columns = [column for column in zip(*cells(comparison), strict=True) if any(column[1:])]
    for name, *_ in columns:
        narrowest = 5 if name == "p" else None
        wraps = name in (comparison.metric, "p")
        shown.add_column(name, no_wrap=not wraps, min_width=narrowest, overflow="fold", justify="right")
    for index, row in enumerate(comparison.rows, 1):
        shown.add_row(Text(row.name), *(column[index] for column in columns))  # no text of a file is markup
    Console().print(shown)
    for line in remarks(comparison):
        print(line)
    print(f"the table and the plot are in {os.path.relpath(folder)}")
    print(comparison.conclusion())
    if answer := comparison.answer():
        print(answer)


def figures(row: Row) -> dict[str, Any]:
    """The figures of a row by their names, unrounded."""
    values = row.values.values()
    return {
        "seeds": " ".join(map(str, row.values)),
        "mean": row.mean,
        "lowest": min(values),
        "highest": max(values),
        "standard deviation": row.deviation,
        "parameters": row.parameters,
        "seconds": row.seconds,
        "difference": row.difference,
        "test": row.test,
        "p": row.p,
    }


def content(comparison: Comparison) -> dict[str, Any]:
    """What comparison.json holds: the rows as in the CSV, and besides the value and the folder of each seed."""
    rows = [
        {"settings": row.settings} | figures(row) | {"values": row.values, "runs": row.runs} for row in comparison.rows
    ]
    return {
        "by": comparison.by,
        "compared_with": comparison.reference.name,
        "rows": rows,
        "not_counted": comparison.left_out,
        "notes": comparison.notes,
        "conclusion": comparison.conclusion(),
        "answer": comparison.answer(),
    }


def cells(comparison: Comparison) -> list[list[str]]:
    """The head and the rows of the table, rounded, without the settings."""
    form = comparison.form
    head = ["seeds", comparison.metric, "std", "parameters", "seconds", "change", "p"]
    rows = []
    for row in comparison.rows:
        p = row.test if row.p is None else p_in_words(row.p)
        rows.append(
            [
                str(len(row.values)),
                spread(list(row.values.values()), form),
                "" if row.deviation is None else f"{row.deviation:{form}}",
                "" if row.parameters is None else f"{row.parameters:,.0f}",
                "" if row.seconds is None else f"{row.seconds:,.4g}" if row.seconds < 1000 else f"{row.seconds:,.0f}",
                f"{row.difference:+{form}}" if row.test else "",
                p,
            ]
        )
    return [head, *rows]


def remarks(comparison: Comparison) -> list[str]:
    """What is said below the table."""
    left_out = [f"not counted: {folder}: {reason}" for folder, reason in comparison.left_out.items()]
    reference = comparison.reference
    compared = f"Each row is compared with {reference.name}, the best with several seeds: {TESTS}"
    if len(reference.values) < 2:
        compared = (
            f"Each row is compared with {reference.name}, the best, without a test: it needs several seeds of each."
        )
    return [*[compared] * (len(comparison.rows) > 1), *comparison.notes, *left_out]


def markdown(comparison: Comparison) -> str:
    """The text of comparison.md."""
    settings = [list(comparison.rows[0].settings), *(list(row.settings.values()) for row in comparison.rows)]
    rows = [
        [cell.replace("\\", "\\\\").replace("|", "\\|") for cell in [*some, *figures]]
        for some, figures in zip(settings, cells(comparison), strict=True)
    ]
    text = [f"# {comparison.metric.capitalize()}, best first", table(rows), *remarks(comparison)]
    said = [comparison.conclusion(), *filter(None, [comparison.answer()])]
    return "\n\n".join([*text, "![Mean, spread and seeds of each row](comparison.png)", *said]) + "\n"


def draw(comparison: Comparison) -> Figure:
    """Each row's mean, its spread from lowest to highest, and its seeds; the best row is on top."""
    rows = comparison.rows
    scale = 100 if comparison.form.endswith("%") else 1
    labels = [textwrap.shorten(row.name, 3 * LABEL, placeholder=" …") for row in rows]
    labels = [textwrap.fill(label, LABEL, break_long_words=True) for label in labels]
    lines = sum(max(1.5, label.count("\n") + 1) for label in labels)
    figure = Figure(figsize=(9, 1.4 + 0.2 * lines), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        is_reference = row is comparison.reference
        colour = VERMILION if is_reference else GREY if row.p is not None and row.p < LEVEL else BLUE
        values = [scale * value for value in row.values.values()]
        axes.plot([min(values), max(values)], [place, place], color=colour, linewidth=2)
        axes.plot(scale * row.mean, place, "|", color=colour, markersize=16, markeredgewidth=3)
        axes.plot(values, [place] * len(values), "o", color="white", markeredgecolor=colour, markersize=5)
    axes.set_yticks(range(len(rows)), labels, fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"{comparison.metric} (%)" if scale > 1 else comparison.metric)
    axes.grid(axis="x", alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    keys = {VERMILION: "reference", BLUE: "not told apart from it", GREY: "differs from it"}
    handles = [Line2D([], [], color=colour, linewidth=3, label=said) for colour, said in keys.items()]
    handles.append(Line2D([], [], color="black", marker="|", markersize=12, linestyle="", label="mean"))
    handles.append(Line2D([], [], color="white", markeredgecolor="black", marker="o", linestyle="", label="a seed"))
    figure.legend(handles=handles, loc="outside upper center", ncols=5, fontsize=9, frameon=False)
    return figure
