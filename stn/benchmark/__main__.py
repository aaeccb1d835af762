"""python -m stn.benchmark: measures speed, compared with what users would run instead.

python -m stn.benchmark layers
python -m stn.benchmark all
python -m stn.benchmark accuracy --rounds 3 data=image_folder data.root=<your images>
"""

import argparse

from stn import cli
from stn.errors import InputError

BENCHMARKS = {
    "layers": "every warp, forward and backward, compared with PyTorch and kornia",
    "train": "images a second, compared with a bare loop and the tutorial's loop",
    "data": "augmented images a second, compared with torchvision",
    "accuracy": "seconds to an accuracy, compared with the tutorial's 50 epochs",
    "export": "images a second of an exported network in each runtime",
    "scaling": "images a second and memory as batch, image, transformers, data and epochs grow",
    "threads": "images a second with one thread and with all",
    "start": "seconds from the command to the first batch",
    "all": "the quick ones, in ten minutes; keeps them in results/benchmarks/",
}
TRAINING = ("train", "data", "accuracy")  # these take settings of stn.train
QUICK = {"layers": 5, "train": 3, "data": 3, "export": 5, "threads": 1, "start": 3}  # rounds of each in "all"


def main() -> None:
    """Runs the command line. After Ctrl-C the results so far are kept."""
    parser = argparse.ArgumentParser(
        "stn.benchmark", description="Measures speed, each candidate and its reference in one run."
    )
    parser.add_argument("what", choices=BENCHMARKS, help="; ".join(f"{k}: {v}" for k, v in BENCHMARKS.items()))
    parser.add_argument("overrides", nargs="*", help="settings of stn.train, key=value")
    parser.add_argument("--rounds", type=int, help="how often each candidate is timed (default: 9; in all: 1 to 5)")
    parser.add_argument("--device", default="cpu", help="cpu (default), or cuda")
    arguments = parser.parse_intermixed_args()
    with cli.exit_codes("stn.benchmark"):
        measure(arguments.what, arguments.overrides, arguments.rounds, arguments.device)


def measure(what: str, overrides: list[str], rounds: int | None, device_name: str) -> None:
    """Runs benchmarks and leaves their reports in outputs/. Raises InputError for what cannot be measured."""
    if rounds is not None and rounds < 1:
        raise InputError(f"--rounds must be 1 or more, not {rounds}")
    if overrides and what not in TRAINING:
        raise InputError(f"{what} takes no settings of stn.train, such as {overrides[0]}")

    import torch  # here, since --help must not wait for it

    from stn.benchmark.report import keep, measured

    try:
        device = torch.device(device_name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device_name} cannot be used: {str(error).splitlines()[0]}") from error
    if what != "all":
        measured(what, overrides, rounds or 9, device)
        return
    quick = {name: usual for name, usual in QUICK.items() if name != "export" or device.type == "cpu"}
    found = {name: measured(name, [], rounds or usual, device) for name, usual in quick.items()}
    print(f"kept in {keep(found, device)}")


if __name__ == "__main__":
    main()
