"""python -m stn.colocalize category=…: finds what all images of a set share, without labels or boxes.

python -m stn.colocalize category=3
python -m stn.colocalize category=7 data.root=data data.distortion.pieces=0 seed=1
python -m stn.colocalize category=4 encoder=RUN
python -m stn.colocalize category=ship data=image_folder data.root=DIR data.distortion.opaque=true
"""

from dataclasses import dataclass, field
from pathlib import Path

from stn import cli
from stn.config import compose
from stn.options import check_output, parse, parser


@dataclass(frozen=True)
class Options:
    """The options of the command."""

    category: str = field(metadata={"help": "the class whose images are hidden and found"})
    encoder: str | None = field(
        default=None, metadata={"help": "a run of a network on undistorted images; null: one is trained first"}
    )
    output: str | None = field(default=None, metadata={"help": "the folder of the results; null: one in outputs/"})
    overwrite: bool = field(default=False, metadata={"help": "whether what is in that folder is deleted"})


def main() -> None:
    """Runs the command line."""
    what = "an option, or a key of conf/colocalize.yaml"
    words = parser("stn.colocalize", __doc__, Options, what).parse_args().words
    with cli.exit_codes("stn.colocalize"):
        options, overrides = parse(Options, words)
        config = compose(overrides, options.output, "colocalize")
        folder = Path(config.folder)
        check_output(folder, options.overwrite, "colocalization.json")
        # Here, since --help must not wait for torch.
        from stn.colocalization import colocalize, show

        show(colocalize(config, options.category, options.encoder, options.overwrite), folder)


if __name__ == "__main__":
    main()
