"""python -m stn.train: trains a network from a config, tests it, and writes a report.

python -m stn.train experiment=demo
python -m stn.train trainer.max_epochs=50
python -m stn.train -m model=lenet,wide seed=1,2
python -m stn.train resume=latest
"""

import os
import sys
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from stn import cli, config
from stn.errors import InputError

# Errors of a run are caught in `launch`, so that a sweep continues. Errors of Hydra, which composes the config and
# makes the folder, are caught in `main`.


@hydra.main(version_base="1.3", config_path=config.config_folder(), config_name="config")
def launch(composed: DictConfig) -> Any:
    """Runs one job for Hydra. It prints an error at once and saves it in the run's folder.

    Returns the best validation accuracy, which Hydra's optimizing sweepers take as the objective.
    """
    try:
        # Here, since --help and --cfg job must not wait for torch.
        from stn.resuming import resumed
        from stn.training import train

        checkpoint = None
        if composed.resume is not None:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                raise InputError("resume goes on with a single run: leave out -m")
            composed, checkpoint = resumed(composed.resume, HydraConfig.get().overrides.task)
        return train(composed, checkpoint=checkpoint).get("best_val_accuracy")
    except Exception as error:
        code = cli.report_error("stn.train", error, HydraConfig.get().runtime.output_dir)
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            raise cli.JobFailedError(code) from error  # the sweep continues
        sys.exit(code)


def run_folder(resume: str | None, new: str) -> str:
    """The folder of the run that is resumed, or a new one."""
    if resume is None:
        return new
    from stn.run import find_run

    return str(find_run(resume))


def main() -> None:
    """Runs the command line."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises errors instead of printing them
    config.register()
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    sys.argv[1:] = [config.expand_home(text) for text in sys.argv[1:]]
    with cli.exit_codes("stn.train"):
        try:
            launch()
        except Exception as error:
            cause: BaseException | None = None if config.explain(error) else error
            while cause and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            if cause:  # of Hydra, which makes the folder and the log in it
                raise InputError(f"the output folder cannot be written: {cause}") from error
            raise


if __name__ == "__main__":
    main()
