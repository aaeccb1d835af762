"""Ways to run the program: as a user types it, or inside the test's process."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hypothesis import settings
from omegaconf import DictConfig, open_dict

from stn import config as configs

# The same examples every time, however slow the machine.
settings.register_profile("stn", deadline=None, derandomize=True, max_examples=30, database=None)
settings.load_profile("stn")

# A run of two seconds that still has every part of a long one.
TINY = [
    "data=shapes",
    "data.train_images=60",
    "data.test_images=20",
    "data.batch_size=20",
    "data.val_fraction=0.2",
    "model=convnet_small",
    "trainer=cpu",
    "trainer.max_epochs=2",
]


@pytest.fixture(autouse=True)
def one_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """python -m stn.train with the arguments given, in an empty folder."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "stn.train", *arguments],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def environment() -> dict[str, str]:
    """The user's environment with this checkout importable from anywhere."""
    root = str(Path(__file__).resolve().parent.parent)
    return os.environ | {"PYTHONPATH": root, "COLUMNS": "120", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[Callable[..., DictConfig]]:
    """The config that the command line given composes, with `tmp_path`/run as the run's folder."""
    configs.register()
    folder = tmp_path / "run"
    folder.mkdir()

    def make(*overrides: str) -> DictConfig:
        config = compose("config", [*overrides, f"hydra.runtime.output_dir={folder}"], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with open_dict(config):  # a run's own config has no such node
            del config["hydra"]
        return config

    with initialize_config_dir(configs.folder(), version_base="1.3"):
        yield make
    GlobalHydra.instance().clear()
