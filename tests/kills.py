"""Kills runs by SIGKILL at random moments, resumes them, and compares each with a run that nobody killed.

python tests/kills.py [runs] [reports]

Every other run is the job of a sweep. Each may be killed up to three times: as it starts, trains, validates, writes a
checkpoint or tests. The temporary folder is on another file system where there is one (/dev/shm). The recipes are those
of test_resume.py. At last it kills reports on one run: the run stays as it is, and so does the report before.
"""

import collections
import json
import random
import re
import sys
import tempfile
import time
from pathlib import Path

from conftest import ROOT, started
from test_resume import RECIPES, SMALL, assert_same_events, assert_same_files

from stn.process import locked
from stn.provenance import provenance
from stn.run import read_metrics

MEMORY = Path("/dev/shm")


def run(folder: Path, arguments: list[str], patience: float | None = None, verb: str = "train") -> float | None:
    """Runs a command; kills it after so many seconds. Returns the seconds it took, None if it was killed."""
    begun = time.monotonic()
    program = started(folder, verb, tuple(arguments), {"TMPDIR": str(MEMORY)} if MEMORY.is_dir() else None)
    program.join(patience)
    if program.exitcode is None:
        program.kill()
        program.join()
        with locked(folder / "run"):  # the job of a sweep that was killed ends in order
            return None
    assert program.exitcode == 0, (folder / ".stderr").read_text()
    return time.monotonic() - begun


def phase(folder: Path) -> str:
    """What a run was doing when it was killed, by the files that it left."""
    if list(folder.glob("checkpoints/.*")):
        return "writing a checkpoint"
    if not (folder / "checkpoints" / "last.ckpt").exists():
        return "before the first checkpoint"
    pictures = len(list((folder / "figures" / "warps").glob("*.png")))
    return "testing" if pictures == 4 else "training or validating"


def kill_reports(folder: Path, count: int, draw: random.Random) -> collections.Counter[str]:
    """Kills reports on the run `whole` at random moments; counts which report was left, the one before or a new one."""
    before, found, page = contents(folder / "whole"), collections.Counter[str](), folder / "report.html"
    report = ["whole", f"output={page}", "overwrite=true"]
    lasts = run(folder, report, verb="report")
    assert lasts is not None
    new = undated(page)
    for number in range(count):
        page.write_text("the report before")
        ended = run(folder, report, draw.uniform(0.2, 1.1) * lasts, verb="report") is not None
        assert undated(page) in ("the report before", new)
        assert contents(folder / "whole") == before
        left = "a new report" if undated(page) == new else "the report before"
        found["ended before it was killed" if ended else left] += 1
        print(f"{number + 1} of {count} reports: {dict(found)}", file=sys.stderr)
    return found


def undated(page: Path) -> str:
    """A page without the time at which it was made."""
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:+]+", "", page.read_text())


def contents(folder: Path) -> dict[Path, bytes]:
    """The contents of all files of a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def main(runs: int = 20, reports: int = 10) -> None:
    draw = random.Random(0)
    kills: collections.Counter[str] = collections.Counter()
    equal: collections.Counter[str] = collections.Counter()
    for number in range(runs):
        kind, recipe = list(RECIPES.items())[number % len(RECIPES)]
        folder = Path(tempfile.mkdtemp())
        settings = [*SMALL, *recipe, "data.train_images=900"]
        is_sweep = bool(number % 2)

        def new(name: str, settings: list[str] = settings, is_sweep: bool = is_sweep) -> list[str]:
            """The arguments of a run in a folder, as the job of a sweep or not."""
            sweep = ["-m", "hydra.sweep.dir=.", f"hydra.sweep.subdir={name}"]
            return [*(sweep if is_sweep else [f"hydra.run.dir={name}"]), *settings, "overwrite=true"]

        lasts = run(folder, new("whole"))
        assert lasts is not None
        for patience in [draw.uniform(0.3, 1) * lasts for _ in range(3)] + [None]:
            resumes = (folder / "run" / "checkpoints" / "last.ckpt").exists()
            is_whole = run(folder, ["resume=run"] if resumes else new("run"), patience) is not None
            if is_whole:
                break
            kills[phase(folder / "run")] += 1
            if "test_accuracy" in read_metrics(folder / "run"):  # then only the summary for TensorBoard is missing
                break
        assert_same_files(folder / "whole", folder / "run")
        if is_whole:
            assert_same_events(folder / "whole", folder / "run")
        equal[kind] += 1
        print(f"{number + 1} of {runs}: equal; killed so far: {dict(kills)}", file=sys.stderr)
    left = kill_reports(folder, reports, draw)
    found = {"runs": runs, "equal": equal, "kills": kills, "left by killed reports": left} | provenance()
    (ROOT / "results" / "kills.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
