"""python -m stn.train: composes the config, trains, tests the checkpoint that was kept, and reports.

python -m stn.train experiment=demo
python -m stn.train trainer.max_epochs=50
python -m stn.train -m model=lenet,wide seed=1,2
"""

import os
import sys
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from stn import cli, config


@hydra.main(version_base="1.3", config_path=config.config_folder(), config_name="config")
def launch(composed: DictConfig) -> Any:
    """Hydra's task: one run. A failure is told at once and kept in the run's folder, so that a sweep goes on.

    Returns the best validation accuracy, for sweepers that optimize.
    """
    try:
        from stn.training import train  # here, since --help and --cfg job must not wait for torch

        return train(composed).get("best_val_accuracy")
    except Exception as error:
        code = cli.tell("stn.train", error, composed.get("folder"))
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            raise cli.JobFailedError(code) from error
        sys.exit(code)


def main() -> None:
    """The command line."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises errors instead of printing them
    config.register()
    with cli.exit_codes("stn.train"):
        launch()


if __name__ == "__main__":
    main()
