"""The command `stn`: stn train …, stn evaluate … and others, each as python -m stn.<verb>."""

import runpy
import sys

import stn
from stn.cli import BAD_INPUT
from stn.errors import nearest

VERBS = {
    "train": "trains a network and tests it",
    "evaluate": "tests the network of a run",
    "predict": "classifies image files by the network of a run",
    "export": "writes the network of a run for other programs: ONNX, TorchScript, pt2 or safetensors",
    "compare": "compares finished runs, and tells which differ by more than their seeds explain",
    "report": "writes one HTML page about a run",
    "record": "keeps the result of a run in results/",
    "colocalize": "finds what all images of a set share, without labels or boxes",
    "benchmark": "measures speed",
}
USAGE = "\n".join(["usage: stn VERB …", *(f"  stn {verb:10} {what}" for verb, what in VERBS.items())])


def main() -> None:
    """Runs the module of a verb, as `python -m` does."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help"):
        print(USAGE)
    elif verb == "--version":
        print(stn.__version__)
    elif verb not in VERBS:
        print(f"stn: there is no verb {verb!r}; {nearest(verb, VERBS)}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    else:
        # As __main__: Hydra and Lightning start child processes by the name of the main module.
        sys.argv[1:] = sys.argv[2:]
        runpy.run_module(f"stn.{verb}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
