"""python -m stn.evaluate RUN: tests the network of a run on its own test set or on another one.

python -m stn.evaluate latest
python -m stn.evaluate outputs/2026-11-24/12-00-00-000000 data.root=photos trainer.accelerator=cpu
"""

import argparse

from stn import cli


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser("stn.evaluate", description="Tests the network of a run on its test set.")
    parser.add_argument("run", help="a run's folder, a checkpoint, or latest")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the run's config, such as data.root")
    arguments = parser.parse_args()
    with cli.exit_codes("stn.evaluate"):
        # Here, since --help must not wait for torch.
        from stn.evaluation import evaluate
        from stn.run import Run, allowed_by

        run = Run.open(arguments.run, allowed_by(arguments.overrides))
        print(f"{run.checkpoint}, epoch {run.epoch}")
        cli.print_table(evaluate(run, run.settings(arguments.overrides)))


if __name__ == "__main__":
    main()
