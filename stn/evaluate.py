"""python -m stn.evaluate RUN key=value …: evaluates the network of a run on its own test set or on another one.

python -m stn.evaluate latest
python -m stn.evaluate RUN sweep=[rotation,scale]
python -m stn.evaluate RUN data.root=photos trainer.accelerator=cpu
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stn import cli
from stn.check import TTA
from stn.options import check_output, make_output, parse, parser


@dataclass(frozen=True)
class Options:
    """The options of the command."""

    split: Literal["test", "val", "train"] = field(
        default="test", metadata={"help": "test; val, which training held out; or train, without augmentation"}
    )
    tta: TTA | None = field(
        default=None,
        metadata={"help": "none, mirror, six, turns, poses or unmirrored_poses; null: as the run was tested"},
    )
    sweep: str | list[str] | None = field(
        default=None, metadata={"help": "accuracy on warped images: rotation, scale, shift_x or shift_y, or a list"}
    )
    worst: int = field(default=20, metadata={"help": "how many of the worst mistakes are drawn"})
    output: str | None = field(default=None, metadata={"help": "the folder of the results; null: RUN/evaluation"})
    overwrite: bool = field(default=False, metadata={"help": "whether what is in that folder is deleted"})
    allow: str | list[str] | None = field(
        default=None, metadata={"help": "packages whose classes the run may name, such as mypackage."}
    )


def main() -> None:
    """Runs the command line."""
    arguments = parser("stn.evaluate", __doc__, Options).parse_args()
    with cli.exit_codes("stn.evaluate"):
        options, overrides = parse(Options, arguments.overrides)
        # Here, since --help must not wait for torch.
        from stn.check import allowed_packages
        from stn.evaluation import evaluate
        from stn.evaluation_files import print_evaluation, write_files
        from stn.run import Run

        run = Run.open(arguments.run, allowed_packages(options.allow))
        config = run.settings(overrides)
        folder = Path(options.output) if options.output else run.folder / "evaluation"
        check_output(folder, options.overwrite, "evaluation.json")
        print(f"{run.checkpoint}, epoch {run.epoch}")
        sweeps = [options.sweep] if isinstance(options.sweep, str) else options.sweep or []
        evaluation = evaluate(run, config, options.split, options.tta, list(dict.fromkeys(sweeps)), options.worst)
        write_files(evaluation, make_output(folder, options.overwrite, "evaluation.json"))
        print_evaluation(evaluation, folder)


if __name__ == "__main__":
    main()
