"""python -m stn.compare RUNS: compares finished runs, and tells which differ by more than their seeds explain.

python -m stn.compare latest
python -m stn.compare outputs/2026-11-24/12-00-00-000000-sweep by=test_loss
python -m stn.compare 'outputs/2026-11-*/*' output=comparisons/november
"""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from stn import cli
from stn.options import make_output, parse, parser


@dataclass(frozen=True)
class Options:
    """The options of python -m stn.compare."""

    by: str = field(default="test_accuracy", metadata={"help": "a number of metrics.json, by which runs are compared"})
    output: str | None = field(default=None, metadata={"help": "the folder of the table and the plot"})
    overwrite: bool = field(
        default=False,
        metadata={"help": "whether an earlier one in output is deleted; a sweep's own always is"},
    )
    allow_different_data: bool = field(default=False, metadata={"help": "whether runs on other data are compared too"})


def main() -> None:
    """Runs the command line."""
    what = "a run's folder, a sweep's folder, a pattern in quotes, latest (the latest sweep), or an option"
    words = parser("stn.compare", __doc__, Options, what).parse_args().words
    with cli.exit_codes("stn.compare"):
        options, places = parse(Options, words)
        # Here, since --help must not wait for torch.
        from stn.comparison import compare_runs
        from stn.comparison_report import print_report, write_report
        from stn.runs import find_runs, latest_sweep

        places = [str(latest_sweep()) if place == "latest" else place for place in places]
        is_sweep = len(places) == 1 and Path(places[0], "multirun.yaml").exists()
        # Who varies the data of a sweep means to.
        comparison = compare_runs(find_runs(places), options.by, options.allow_different_data or is_sweep)
        new = Path("outputs", f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}-comparison")
        folder = Path(places[0], "comparison") if is_sweep else new
        # What a sweep wrote at its own end is made anew.
        is_own = is_sweep and options.output is None
        output = make_output(Path(options.output or folder), options.overwrite or is_own, "comparison.json")
        write_report(comparison, output)
        print_report(comparison, output)


if __name__ == "__main__":
    main()
