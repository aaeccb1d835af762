"""Runs a benchmark, and writes its rows as JSON, table and plot, with the machine, versions and code that gave them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from stn.provenance import provenance
from stn.results import table

KEPT = Path("results/benchmarks")


def measured(what: str, overrides: list[str], rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """Runs a benchmark, leaves its report in outputs/, and returns its rows. After Ctrl-C it reports those so far."""
    folder = Path("outputs", f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}-benchmark-{what}")
    folder.mkdir(parents=True)
    benchmark = import_module(f"stn.benchmark.{what}")
    found: list[dict[str, Any]] = []
    try:
        for row in benchmark.measure(rounds, device, overrides):
            print(" ".join(cell(value) for value in row.values()), flush=True)
            found.append(row)
    finally:
        if found:
            report(folder, what, found, device, benchmark.draw)
        else:
            folder.rmdir()
    return found


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, list):
        numbers = all(isinstance(one, float) for one in value)  # quartiles
        return (" to " if numbers else " ").join(map(cell, value))
    return str(value)


def report(
    folder: Path,
    what: str,
    rows: list[dict[str, Any]],
    device: torch.device,
    draw: Callable[[list[dict[str, Any]], Axes], None],
) -> None:
    """Writes `what`.json, .md and .png into `folder`, and prints the table."""
    found = provenance(device)
    said = found["machine"] | {"torch": torch.__version__, "commit": found["commit"]}
    where = ", ".join(f"{name} {cell(value)}" for name, value in said.items())
    (folder / f"{what}.json").write_text(json.dumps(found | {"rows": rows}, indent=2) + "\n", encoding="utf-8")
    lines = [list(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    (folder / f"{what}.md").write_text(f"{table(lines)}\n\n{where}\n", encoding="utf-8")
    shown = Table(caption=where, padding=(0, 1, 0, 0), box=box.SIMPLE_HEAD)
    for column in zip(*lines, strict=True):
        shown.add_column(column[0], min_width=max(len(word) for text in column for word in text.split(" ")))
    for line in lines[1:]:
        shown.add_row(*line)
    Console().print(shown)
    figure = Figure(figsize=(9, 5), layout="constrained")
    draw(rows, figure.add_subplot())
    figure.suptitle(where, fontsize=8)
    figure.savefig(folder / f"{what}.png", dpi=120)
    print(f"the table, its figures as JSON and the plot are in {os.path.relpath(folder)}")


def bars(axes: Axes, values: Mapping[str, float], peers: Collection[str] = (), form: str = "{:,.0f}") -> None:
    """Draws values as bars, each with its name. Those of `peers` are grey."""
    colours = ["tab:gray" if name in peers else "tab:blue" for name in values]
    axes.bar_label(axes.barh(list(values), list(values.values()), color=colours), fmt=form, padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)  # room for the labels


def keep(rows: dict[str, list[dict[str, Any]]], device: torch.device) -> Path:
    """Writes the rows of several benchmarks to results/benchmarks/<machine>.json, and returns that path."""
    found = provenance(device)
    on = found["machine"]
    name = on.get("gpu") or " ".join([on["processor"], f"{on['cores']} cores", *on["features"][:1]])
    path = KEPT / f"{re.sub('[^a-z0-9_]+', '-', name.lower()).strip('-')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found | {"benchmarks": rows}, indent=2) + "\n", encoding="utf-8")
    return path
