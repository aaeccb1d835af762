"""python -m stn.report RUN key=value …: writes a run as one HTML file, which opens offline and can be mailed.

python -m stn.report latest
python -m stn.report RUN output=report.html overwrite=true
python -m stn.report RUN data.root=photos robustness=false
"""

from dataclasses import dataclass, field
from pathlib import Path

from stn import cli
from stn.options import check_file, parse, parser


@dataclass(frozen=True)
class Options:
    """The options of the command."""

    robustness: bool = field(
        default=True,
        metadata={"help": "whether it finds the accuracy on turned, scaled and shifted images, 500 of them at most"},
    )
    output: str | None = field(default=None, metadata={"help": "the file; null: RUN/report.html"})
    overwrite: bool = field(default=False, metadata={"help": "whether a file that is there is replaced"})
    allow: str | list[str] | None = field(
        default=None, metadata={"help": "packages whose classes the run may name, such as mypackage."}
    )


def main() -> None:
    """Runs the command line."""
    arguments = parser("stn.report", __doc__, Options).parse_args()
    with cli.exit_codes("stn.report"):
        options, overrides = parse(Options, arguments.overrides)
        # Here, since --help must not wait for torch.
        from stn.check import allowed_packages
        from stn.config import write
        from stn.errors import user_errors
        from stn.reporting.page import make_page
        from stn.run import Run

        run = Run.open(arguments.run, allowed_packages(options.allow))
        config = run.settings(overrides)
        path = Path(options.output) if options.output else run.folder / "report.html"
        check_file(path, ".html", options.overwrite)
        print(f"{run.checkpoint}, epoch {run.epoch}")
        page = make_page(run, config, robustness=options.robustness)
        with user_errors("output"):
            write(path, page)
        print(f"{path}, {path.stat().st_size / 2**20:.1f} MiB: open it in a browser")


if __name__ == "__main__":
    main()
