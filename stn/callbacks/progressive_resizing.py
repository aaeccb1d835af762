"""Trains on small images first."""

from typing import Any

import pytorch_lightning as pl
import torch

from stn.errors import InputError
from stn.layers import SpatialTransformer


class ProgressiveResizing(pl.Callback):
    """Trains on small images first: the transformer on the input has a small output, which grows with the epochs.

    start: the side in pixels in the first epoch; it grows in steps of 4.
    until: the share of all epochs after which the images have their own size.
    Validation, pictures and test use the image's own size (M. Tan and Q. Le 2021, "EfficientNetV2", section 4).
    Raises ValueError for values out of range. Raises InputError when training begins if the network has no transformer
    on the input, or cannot process such small images.
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
        images = pl_module.get_submodule("normalization")(trainer.datamodule.images["val"][:2])  # type: ignore[attr-defined]
        self.full = images.shape[2]
        without = "leave it out with callbacks.resizing=null"
        if not self.readers or any(reader.output_size for reader in self.readers):
            raise InputError(
                f"callbacks.resizing needs a transformer on the input whose output_size is unset; or {without}"
            )
        if self.full <= self.start:
            raise InputError(
                f"callbacks.resizing.start={self.start} must be less than the images' {self.full} pixels; or {without}"
            )
        self._read(self.start)
        precision = trainer.precision_plugin
        try:
            # Uncompiled: torch would compile once more for this size.
            with torch.no_grad(), torch.compiler.set_stance("force_eager"), precision.forward_context():
                net.eval()(images)
        except RuntimeError as error:
            raise InputError(
                f"callbacks.resizing.start={self.start}: this model cannot process such small images; choose a larger "
                f"start or model=wide, or {without}"
            ) from error
        net.train()
        self._read(self.full)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any) -> None:
        # For each batch, because a validation within the epoch sets the full size.
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
