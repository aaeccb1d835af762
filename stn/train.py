"""python -m stn.train: trains a network from a config, tests it, and writes the folder of the run.

python -m stn.train experiment=demo
python -m stn.train trainer.max_epochs=50
python -m stn.train -m model=lenet,wide seed=1,2
python -m stn.train resume=latest
python -m stn.train -m resume=latest
"""

import os
import sys
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from stn import cli, config, jobs, sweep
from stn.errors import InputError, in_words

# Errors of a run are told where it runs, so that a sweep continues. Errors of Hydra, which composes the config and
# makes the folder, are told in `main`.


@hydra.main(version_base="1.3", config_path=config.config_folder(), config_name="config")
def launch(composed: DictConfig) -> Any:
    """Runs one job for Hydra. Returns what its optimizing sweepers take as the objective."""
    return jobs.run_apart(composed) if HydraConfig.get().mode is RunMode.MULTIRUN else jobs.run(composed)


def run_folder(resume: str | int | None, new: str) -> str:
    """The folder of the run that is resumed, or a new one."""
    if resume is None:
        return new
    from stn.resuming import run_to_resume

    return str(run_to_resume(str(resume)))


def main() -> None:
    """Runs the command line."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises errors instead of printing them
    config.register()
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    words = [config.expand_home(text) for text in sys.argv[1:]]
    with cli.exit_codes("stn.train"):
        words = [config.hydra_word(word) for word in sweep.arguments(words)]
        if cli.rank() > 0:
            words = jobs.in_temporary_folder(words)
        sys.argv[1:] = sorted(words, key=lambda word: word not in ("-m", "--multirun"))  # Hydra wants it first
        try:
            with sweep.told():
                launch()
        except Exception as error:
            cause: BaseException | None = None if config.explain(error) else error
            while cause and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            if cause:  # of Hydra, which makes the folder and the log in it
                raise InputError(f"the output folder cannot be written: {in_words(cause)}") from error
            raise


if __name__ == "__main__":
    main()
