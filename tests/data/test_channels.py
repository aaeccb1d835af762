"""Images of any number of channels, from a folder or a tensor to the pictures of a run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

import stn
from stn.data.resident import ResidentDataModule
from stn.training import train

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
QUICK = [setting for setting in TINY if not setting.startswith(("data", "model"))]


class Noise(ResidentDataModule):
    """Two classes, told apart by their brightness; a tensor of the user's own."""

    classes = ("dark", "light")

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(int(train))
        labels = torch.arange(40 if train else 10) % 2
        noise = torch.randint(0, 128, (len(labels), self.channels, 32, 32), generator=generator)
        return (noise + 120 * labels[:, None, None, None]).to(torch.uint8), labels


def opened(folder: Path, channels: int) -> None:
    """The run opens again, and has pictures that show something."""
    run = stn.Run.open(folder, allow="test_channels.")
    assert run.channels == channels
    assert run.classifier(torch.zeros(2, channels, 32, 32, dtype=torch.uint8)).shape == (2, 2)
    with Image.open(folder / "figures" / "warps" / "transformer_epoch_001.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[2] == 3 and pixels.std() > 20


@pytest.mark.parametrize("model", ["wide", "lenet"])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_from_a_folder_to_the_pictures(
    model: str, channels: int, composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 5)):
        for label, name in enumerate(("dark", "light")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 128, (32, 32, channels), dtype=np.uint8) + np.uint8(120 * label)
                Image.fromarray(pixels.squeeze(), MODES[channels]).save(tmp_path / split / name / f"{index}.png")
    settings = [f"data.root={tmp_path}", f"data.channels={channels}", "data.batch_size=10", "data.val_fraction=0.2"]
    train(composed("data=image_folder", *settings, f"model={model}", *QUICK))
    opened(tmp_path / "run", channels)


@pytest.mark.parametrize("placement", ["input", "parallel", "deep"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_from_a_tensor_to_the_pictures(
    placement: str, channels: int, composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    settings = ["data.mean=null", "data.std=null", f"data.channels={channels}", "data.batch_size=10"]
    unset = [f"~data.{key}" for key in ("train_images", "test_images", "rotation", "min_scale", "max_scale")]
    noise = ["data=shapes", "data._target_=test_channels.Noise", *unset]
    train(composed(*noise, *settings, f"model.placement={placement}", "model=convnet_small", *QUICK))
    if placement == "input":
        opened(tmp_path / "run", channels)
