"""python -m stn.export RUN format=…: writes the network of a run as a file for other programs.

python -m stn.export latest format=onnx
python -m stn.export RUN format=torchscript dtype=float32 theta=true
python -m stn.export RUN format=safetensors output=figures.safetensors
"""

from dataclasses import asdict, dataclass, field
from typing import Literal

from stn import cli
from stn.check import TTA
from stn.options import parse, parser


@dataclass(frozen=True)
class Options:
    """The options of the command."""

    format: Literal["onnx", "torchscript", "pt2", "safetensors"] = field(
        metadata={"help": "onnx, torchscript, pt2 (torch.export), or safetensors, which opens again as a run does"}
    )
    dtype: Literal["uint8", "float32"] | None = field(
        default=None, metadata={"help": "of the pixels: uint8 (the default), or float32 in [0, 1]"}
    )
    theta: bool = field(default=False, metadata={"help": "whether θ of the transformers is a second output"})
    tta: TTA | None = field(
        default=None,
        metadata={
            "help": "the scored views of an image: none (default), mirror, six, turns, poses or unmirrored_poses"
        },
    )
    opset: int | None = field(default=None, metadata={"help": "of onnx, 18 (the default) to 23"})
    check: int | Literal["all"] = field(
        default=256, metadata={"help": "on how many test images file and network are compared, or all"}
    )
    output: str | None = field(
        default=None, metadata={"help": "the file; RUN/export/model.onnx, .pt, .pt2 or .safetensors unless given"}
    )
    overwrite: bool = field(default=False, metadata={"help": "whether a file that is there is replaced"})
    allow: str | list[str] | None = field(
        default=None, metadata={"help": "packages whose classes the run may name, such as mypackage."}
    )


def main() -> None:
    """Runs the command line."""
    arguments = parser("stn.export", __doc__, Options).parse_args()
    with cli.exit_codes("stn.export"):
        options, overrides = parse(Options, arguments.overrides)
        # Here, since --help must not wait for torch.
        from stn.check import allowed_packages
        from stn.exporting import export
        from stn.run import Run

        run = Run.open(arguments.run, allowed_packages(options.allow))
        print(f"{run.checkpoint}, epoch {run.epoch}")
        found = export(run, overrides, **asdict(options))
        print(f"compared on {found.images}, in batches of 1 and 64: outputs differ by up to {found.difference:.1e}")
        print(f"{found.path}, {found.path.stat().st_size / 2**20:,.1f} MiB: {found.signature}")
        own = run.classifier.tta
        if found.metadata["tta"] != own:
            scored = found.metadata["tta"]
            print(f"it scores tta={scored}, where predict and evaluate score tta={own}: set tta={own} for the same")


if __name__ == "__main__":
    main()
