"""python -m stn.predict RUN source=…: classifies images, and shows where the network looked.

python -m stn.predict latest source=photos
python -m stn.predict RUN source=cat.jpg crop=center topk=3
python -m stn.predict RUN 'source=photos/**/*.png' device=cpu pictures=false output=found
find photos -newer last | python -m stn.predict RUN source=-
"""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from stn import cli
from stn.check import TTA
from stn.errors import InputError, nearest
from stn.options import make_output, parse, parser


@dataclass(frozen=True)
class Options:
    """The options of the command."""

    source: str = field(metadata={"help": "an image, a folder, a quoted glob, or - for paths from standard input"})
    topk: int | None = field(
        default=None, metadata={"help": "classes of each image in the tables (default: at most 5)"}
    )
    crop: Literal["center"] | None = field(
        default=None, metadata={"help": "center takes the central square (default: the whole, resized to a square)"}
    )
    tta: TTA | None = field(
        default=None,
        metadata={
            "help": "views of each image: none, mirror, six, turns, poses or unmirrored_poses (default: as the run)"
        },
    )
    batch_size: int = field(default=64, metadata={"help": "images at a time"})
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata={"help": "auto, cpu or cuda"})
    output: str | None = field(default=None, metadata={"help": "a folder (default: predictions/ in the run's)"})
    overwrite: bool = field(default=False, metadata={"help": "whether what is in the output is deleted"})
    pictures: bool = field(default=True, metadata={"help": "whether pictures are drawn"})
    allow: str | list[str] | None = field(
        default=None, metadata={"help": "packages whose classes the checkpoint may name, such as mypackage."}
    )


def main() -> None:
    """Runs the command line."""
    arguments = parser("stn.predict", __doc__, Options).parse_args()
    with cli.exit_codes("stn.predict"):
        options, others = parse(Options, arguments.overrides)
        if others:
            name = others[0].partition("=")[0]
            raise InputError(f"{others[0]}: there is no such option; {nearest(name, asdict(options))}")
        # Here, since --help must not wait for torch.
        from stn.check import allowed_packages
        from stn.prediction_files import predict_files, prepare, show
        from stn.run import Run
        from stn.sources import check_apart, find_files

        run = Run.open(arguments.run, allowed_packages(options.allow))
        topk = prepare(run, options.topk, options.tta, options.device, options.batch_size)
        files, left_out = find_files(options.source)
        folder = Path(options.output) if options.output else run.folder / "predictions"
        check_apart(folder, files)
        make_output(folder, options.overwrite, "predictions.json")
        found = predict_files(
            run, files, folder, asdict(options), topk, options.crop, options.batch_size, options.pictures
        )
        show(found, folder, left_out)
        if found.broken:
            sys.exit(cli.FAILED if found.rows else cli.BAD_INPUT)


if __name__ == "__main__":
    main()
