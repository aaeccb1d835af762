"""Co-localization: trains an encoder, hides images of one class on larger ones, and finds them again."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from stn.build import build_data, build_trainer, read_data
from stn.callbacks.pictures import drawing
from stn.check import allowed_packages, check
from stn.cli import print_table
from stn.colocalizer import FOUND, Colocalizer
from stn.config import write
from stn.data.distortion import Distortion
from stn.errors import InputError, nearest, user_errors
from stn.figures import readings, sheet
from stn.options import make_output
from stn.process import prepare_process
from stn.provenance import provenance
from stn.run import Run
from stn.training import broken_off, train

RESULT = "colocalization.json"
IMAGES, OTHERS = 100, 900  # images of the class, and images of other classes, of which the clutter is cut
EPOCHS = 6
# Settings of the trainer that hold for the co-localization too. The others are the encoder's.
OF_THE_MACHINE = ("_target_", "accelerator", "devices", "num_nodes", "strategy", "precision", "deterministic")
HIDES_NOTHING = (
    "it must put the images on a larger canvas, without undo: set data/distortion=clutter data.distortion.canvas=84"
)
SHOWN = 20


def colocalize(
    config: DictConfig, category: str, encoder: str | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Finds the images of one class that a distortion hides, and writes colocalization.json and pictures.

    config: see conf/colocalize.yaml; the results go into its folder. category: the name of the class.
    encoder: a run on undistorted images; None trains one. overwrite: whether earlier results are deleted.
    Returns the content of colocalization.json. Raises InputError for a config or a class that cannot be used.
    """
    if "_target_" not in (config.data.distortion or {}):  # of conf/colocalize.yaml, what changes a distortion is left
        raise InputError(f"data.distortion: {HIDES_NOTHING}")
    check(config)
    prepare_process(config)
    folder, plain, changed = Path(config.folder), config.copy(), config.copy()
    changed.callbacks = {}
    kept = {key: value for key, value in config.trainer.items() if key in OF_THE_MACHINE}
    changed.trainer = kept | {"max_epochs": EPOCHS, "log_every_n_steps": 1}
    trainer = build_trainer(changed, [CropGallery(folder / "figures")])
    if trainer.world_size > 1:
        raise InputError(f"all images are in one batch, so trainer.devices must be 1, not {trainer.world_size}")
    plain.data.distortion = plain.data.test_distortion = None
    data = build_data(plain)
    with user_errors("data.distortion"):
        distortion = instantiate(config.data.distortion)
        if distortion is None or distortion.side(data.image_size) == data.image_size:
            raise ValueError(HIDES_NOTHING)
    classes = list(data.classes)
    if category not in classes:
        raise InputError(f"category={category}: there is no such class; {nearest(category, classes)}")
    allow = allowed_packages(config.allow)
    run = Run.open(encoder, allow) if encoder else None
    if run and run.checkpoint.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"encoder={encoder} lies in {folder}, where the results are written: give another output=…")
    make_output(folder, overwrite, RESULT)
    if run is None:
        plain.folder = str(folder / "encoder")
        train(plain)
        run = Run.open(plain.folder, allow)
    data = read_data(run.data(plain), "test")
    pl.seed_everything(config.seed, verbose=False)
    images, labels = data.images["test"], data.labels["test"]
    with user_errors("data.distortion"):
        hidden, boxes = hide(images, labels == classes.index(category), distortion, config.seed)
        module = Colocalizer(run.classifier, hidden, boxes)
    start = time.monotonic()
    with broken_off(trainer) as broke_off:
        trainer.fit(module)
        seconds = time.monotonic() - start
        (scores,) = trainer.test(module, verbose=False)
    if broke_off:
        raise broke_off[0]
    found = {
        "category": category,
        "images": len(hidden),
        "found": scores["test/found"],
        "overlap": scores["test/overlap"],
        "loss": module.losses.min().item(),
        "seconds": seconds,
        "encoder": str(run.checkpoint),
        "encoder_test_accuracy": run.metrics.get("test_accuracy"),
        "seed": config.seed,
        "data": OmegaConf.to_container(config.data, resolve=True),
        "provenance": provenance(trainer.strategy.root_device),
    }
    write(folder / RESULT, json.dumps(found, indent=2) + "\n")
    return found


def hide(images: Tensor, chosen: Tensor, distortion: Distortion, seed: int) -> tuple[Tensor, Tensor]:
    """Distorts images of one class: (N, C, canvas, canvas) uint8, at most 100, and where they are.

    images (M, C, H, H) uint8, of which those `chosen` (M,) are of the class; the others give the clutter.
    The second tensor has their boxes (N, 4): (left, top, right, bottom) in [-1, 1].
    Raises ValueError for fewer than two images of the class.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    own, others = order[chosen[order]][:IMAGES], order[~chosen[order]][:OTHERS]
    if len(own) < 2:
        raise ValueError(f"the test set must have two images of the class or more, not {len(own)}")
    distorted, figures = distortion(images[torch.cat((own, others))], generator)
    figures = figures[: len(own)]
    return distorted[: len(own)], torch.cat((figures.amin(dim=1), figures.amax(dim=1)), dim=1)


class CropGallery(pl.Callback):
    """Draws the first images after every epoch, with crop and true box, and what is cropped; and tells the score.

    folder: of the pictures, epoch_<n>.png.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Colocalizer)
        epoch, found = trainer.current_epoch + 1, trainer.callback_metrics
        told = f"loss {found['train/loss']:.3f}, found {found['val/found']:.0%}"
        print(f"epoch {epoch} of {trainer.max_epochs}: {told}", flush=True)
        overlaps = pl_module.overlaps()[:SHOWN].tolist()
        seen = readings(
            pl_module.best,
            pl_module.normalization,
            pl_module.theta()[:SHOWN],
            pl_module.pixels[:SHOWN],
            [f"{overlap:.2f}" for overlap in overlaps],
            [overlap >= FOUND for overlap in overlaps],
            pl_module.boxes[:SHOWN],
        )
        with drawing(f"the crops of epoch {epoch}"):
            self.folder.mkdir(parents=True, exist_ok=True)
            picture = sheet(seen, f"epoch {epoch}, {told}", ("input", "crop"))
            picture.save(self.folder / f"epoch_{epoch:03d}.png")


def show(found: dict[str, Any], folder: Path) -> None:
    """Prints the result, and says where the rest is."""
    print_table(
        {
            "images": found["images"],
            "found": f"{found['found']:.0%}",
            "mean overlap": found["overlap"],
            "seconds": found["seconds"],
        }
    )
    print(f"colocalization.json and the pictures of every epoch are in {os.path.relpath(folder)}")
