"""python -m stn.benchmark: how fast it is, beside what users would run instead.

python -m stn.benchmark layers
python -m stn.benchmark train
python -m stn.benchmark accuracy --rounds 3 data=image_folder data.root=<your images>
"""

import argparse
import json
import os
import platform
import sys
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stn.train import BAD_INPUT, INTERRUPTED

if TYPE_CHECKING:
    import torch

# torch is imported where something is computed: --help answers at once.

BENCHMARKS = {
    "layers": "every warp, forward and backward, beside PyTorch and kornia",
    "train": "images a second beside a bare loop and the tutorial's",
    "data": "images a second that are augmented, beside torchvision",
    "accuracy": "seconds to an accuracy, beside the tutorial's 50 epochs",
    "scaling": "images a second and memory as batch, image, transformers, data and epochs grow",
}
TRAINING = ("train", "data", "accuracy")  # by configs


def main() -> None:
    """The command line: exit code 2 and one sentence for bad input; Ctrl-C keeps what was measured."""
    parser = argparse.ArgumentParser("stn.benchmark", description="Measures speed, each beside its peer in one run.")
    parser.add_argument("what", choices=BENCHMARKS, help="; ".join(f"{k}: {v}" for k, v in BENCHMARKS.items()))
    parser.add_argument("overrides", nargs="*", help="settings of stn.train, key=value")
    parser.add_argument("--rounds", type=int, default=9, help="how often each arm is timed (default: 9)")
    parser.add_argument("--device", default="cpu", help="cpu (default), or cuda")
    arguments = parser.parse_intermixed_args()
    if arguments.rounds < 1:
        sys.exit(said(f"--rounds must be 1 or more, not {arguments.rounds}"))

    if arguments.overrides and arguments.what not in TRAINING:
        sys.exit(said(f"{arguments.what} takes no settings of stn.train, such as {arguments.overrides[0]}"))

    import torch

    from stn.config import explain

    try:
        device = torch.device(arguments.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        sys.exit(said(f"--device {arguments.device} cannot be used: {str(error).splitlines()[0]}"))
    folder = Path("outputs", f"{datetime.now():%Y-%m-%d}", f"{datetime.now():%H-%M-%S-%f}-benchmark-{arguments.what}")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        sys.exit(said(f"the output folder cannot be written: {error}"))

    benchmark = import_module(f"stn.benchmark.{arguments.what}")
    rows: list[dict[str, Any]] = []
    code = 0
    try:
        for row in benchmark.measure(arguments.rounds, device, arguments.overrides):
            print(" ".join(cell(value) for value in row.values()), flush=True)
            rows.append(row)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        code = said(sentence)
    if rows:
        report(folder, arguments.what, rows, machine(device), benchmark.draw)
    else:
        folder.rmdir()
    sys.exit(code)


def said(sentence: str) -> int:
    """Tells what was wrong; returns the exit code."""
    print(f"stn.benchmark: {sentence}", file=sys.stderr)
    return BAD_INPUT


def machine(device: "torch.device") -> dict[str, Any]:
    """What was measured on."""
    import torch

    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), name)
    found = {"processor": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    return found | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return " to ".join(map(cell, value)) if isinstance(value, list) else str(value)


def report(folder: Path, what: str, rows: list[dict[str, Any]], on: dict[str, Any], draw: Any) -> None:
    """Writes the rows as JSON, as a table and as a plot, and shows the table."""
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table

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


if __name__ == "__main__":
    main()
