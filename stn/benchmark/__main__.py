"""python -m stn.benchmark: measures speed, compared with what users would run instead.

python -m stn.benchmark layers
python -m stn.benchmark train
python -m stn.benchmark accuracy --rounds 3 data=image_folder data.root=<your images>
"""

import argparse
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from stn import cli
from stn.errors import InputError

BENCHMARKS = {
    "layers": "every warp, forward and backward, compared with PyTorch and kornia",
    "train": "images a second, compared with a bare loop and the tutorial's loop",
    "data": "augmented images a second, compared with torchvision",
    "accuracy": "seconds to an accuracy, compared with the tutorial's 50 epochs",
    "export": "images a second of an exported network in each runtime",
    "scaling": "images a second and memory as batch, image, transformers, data and epochs grow",
}
TRAINING = ("train", "data", "accuracy")  # these take settings of stn.train


def main() -> None:
    """Runs the command line. After Ctrl-C the results so far are kept."""
    parser = argparse.ArgumentParser(
        "stn.benchmark", description="Measures speed, each candidate and its reference in one run."
    )
    parser.add_argument("what", choices=BENCHMARKS, help="; ".join(f"{k}: {v}" for k, v in BENCHMARKS.items()))
    parser.add_argument("overrides", nargs="*", help="settings of stn.train, key=value")
    parser.add_argument("--rounds", type=int, default=9, help="how often each candidate is timed (default: 9)")
    parser.add_argument("--device", default="cpu", help="cpu (default), or cuda")
    arguments = parser.parse_intermixed_args()
    with cli.exit_codes("stn.benchmark"):
        measure(arguments.what, arguments.overrides, arguments.rounds, arguments.device)


def measure(what: str, overrides: list[str], rounds: int, device_name: str) -> None:
    """Runs a benchmark and leaves its report in outputs/. Raises InputError for what cannot be measured."""
    if rounds < 1:
        raise InputError(f"--rounds must be 1 or more, not {rounds}")
    if overrides and what not in TRAINING:
        raise InputError(f"{what} takes no settings of stn.train, such as {overrides[0]}")

    import torch  # here, since --help must not wait for it

    from stn.benchmark.report import cell, report

    try:
        device = torch.device(device_name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device_name} cannot be used: {str(error).splitlines()[0]}") from error
    folder = Path("outputs", f"{datetime.now():%Y-%m-%d}", f"{datetime.now():%H-%M-%S-%f}-benchmark-{what}")
    folder.mkdir(parents=True)
    benchmark = import_module(f"stn.benchmark.{what}")
    found: list[dict[str, Any]] = []
    try:
        for row in benchmark.measure(rounds, device, overrides):
            print(" ".join(cell(value) for value in row.values()), flush=True)
            found.append(row)
    finally:
        if found:
            report(folder, what, found, device, benchmark.draw)
        else:
            folder.rmdir()


if __name__ == "__main__":
    main()
