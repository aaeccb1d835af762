"""Small images first."""

from typing import Any

import pytorch_lightning as pl
import torch

from stn.config import ConfigError
from stn.layers import SpatialTransformer


class ProgressiveResizing(pl.Callback):
    """Trains on small images first: the transformer on the input reads fewer pixels, more with each epoch.

    `start` pixels a side in the first epoch, in steps of 4 up to the image's own size from `until` of the epochs on
    (M. Tan and Q. Le 2021, "EfficientNetV2", section 4). Validation, pictures and test have the size of the image.
    Raises ValueError for values out of range, ConfigError for a network that has no such transformer or takes no images
    so small.
    """

    def __init__(self, start: int = 20, until: float = 0.5) -> None:
        if start < 4 or start % 4:
            raise ValueError(f"start must be a multiple of 4 above 0, not {start}")
        if not 0 < until <= 1:
            raise ValueError(f"until must lie in (0, 1], not {until}")
        self.start, self.until = start, until

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        net = pl_module.get_submodule("net")
        first = next(net.children())
        self.readers = [part for part in (first, *first.children()) if isinstance(part, SpatialTransformer)]
        images = trainer.datamodule.val_dataloader().normalize(trainer.datamodule.images["val"][:2])  # type: ignore[attr-defined]
        self.full = images.shape[2]
        without = "leave it out by ~callbacks.resizing"
        if not self.readers or any(reader.output_size for reader in self.readers):
            raise ConfigError(
                f"callbacks.resizing needs a transformer on the input whose output_size is unset; or {without}"
            )
        if self.full <= self.start:
            raise ConfigError(
                f"callbacks.resizing.start={self.start} must be less than the images' {self.full} pixels; or {without}"
            )
        self._read(self.start)
        precision = trainer.precision_plugin
        try:
            # Once, and in no shape that training compiles for.
            with torch.no_grad(), torch.compiler.set_stance("force_eager"), precision.forward_context():
                net.eval()(precision.convert_input(images))
        except RuntimeError as error:
            raise ConfigError(
                f"callbacks.resizing.start={self.start}: this model takes no images so small; choose a larger start or "
                f"model=wide, or {without}"
            ) from error
        net.train()
        self._read(self.full)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any) -> None:
        assert trainer.max_epochs is not None
        done = trainer.current_epoch / (self.until * trainer.max_epochs)
        side = self.start + round((self.full - self.start) * done / 4) * 4
        self._read(side if done < 1 and side < self.full else self.full)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._read(self.full)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._read(self.full)

    def _read(self, side: int) -> None:
        for reader in self.readers:
            reader.output_size = (side, side) if side < self.full else None
