"""Makes the tables of docs/speed.md from results/benchmarks/."""

import json
from pathlib import Path

from stn.benchmark.report import KEPT, cell
from stn.results import table
from stn.results_page import with_tables

PAGE = Path("docs/speed.md")
HEADS = {
    "layers": "The layer, forward and backward for θ",
    "train": "Training, images a second",
    "data": "Batches, images a second",
    "export": "Exported networks, images a second",
    "threads": "Threads",
    "start": "From the command to the first batch",
}


def make_speed_page() -> None:
    """Writes docs/speed.md with its tables made anew."""
    PAGE.write_text(with_tables(PAGE, tables()), encoding="utf-8")


def tables() -> str:
    """The tables of all machines, each under a heading that names machine, versions, commit and date."""
    parts = []
    for path in sorted(KEPT.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        on = found["machine"]
        name = on.get("gpu") or f"{on['processor']}, {on['cores']} cores"
        versions = ", ".join(f"{library} {number}" for library, number in found["versions"].items())
        parts.append(f"## {name} ({', '.join(on['features'])})\n")
        parts.append(f"{found['date'][:10]}, commit {found['commit']}, {on['threads']} threads, {versions}; ")
        parts[-1] += f"[the file](../{path})\n"
        for what, rows in found["benchmarks"].items():
            lines = [list(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
            parts.append(f"### {HEADS[what]}\n\n`python -m stn.benchmark {what}`\n\n{table(lines)}\n")
    return "\n".join(parts)
