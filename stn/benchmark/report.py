"""Writes the results of a benchmark as JSON, table and plot, with the machine that gave them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from stn.provenance import machine


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return " to ".join(map(cell, value)) if isinstance(value, list) else str(value)


def report(
    folder: Path,
    what: str,
    rows: list[dict[str, Any]],
    device: torch.device,
    draw: Callable[[list[dict[str, Any]], Axes], None],
) -> None:
    """Writes `what`.json, .md and .png into `folder`, and prints the table."""
    on = machine(device) | {"torch": torch.__version__}
    where = ", ".join(f"{name} {value}" for name, value in on.items())
    (folder / f"{what}.json").write_text(json.dumps({"machine": on, "rows": rows}, indent=2) + "\n")
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([cell(value) for value in row.values()] for row in rows)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    (folder / f"{what}.md").write_text(f"{text}\n\n{where}\n")
    table = Table(*names, caption=where)
    for row in rows:
        table.add_row(*(cell(value) for value in row.values()))
    Console().print(table)
    figure = Figure(figsize=(9, 5), layout="constrained")
    draw(rows, figure.add_subplot())
    figure.suptitle(where, fontsize=8)
    figure.savefig(folder / f"{what}.png", dpi=120)
    print(f"the table, its figures as JSON and the plot are in {os.path.relpath(folder)}")
