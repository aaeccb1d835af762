"""Trains on small images first."""

import logging
from typing import Any

import pytorch_lightning as pl
import torch

from stn.layers import SpatialTransformer

log = logging.getLogger(__name__)


class ProgressiveResizing(pl.Callback):
    """Trains on small images first: the transformer on the input has a small output, which grows with the epochs.

    start: the side in the first epoch, as a share of the image's; it grows in steps of 4 pixels, of large images more.
    until: the share of all epochs after which the images have their own size.
    Validation, pictures and test use the image's own size (M. Tan and Q. Le 2021, "EfficientNetV2", section 4).
    Nothing grows in a network that has no transformer on the input, whose output_size is set, or that cannot take such
    small images. Raises ValueError for values out of range.
    """

    def __init__(self, start: float = 0.6, until: float = 0.5) -> None:
        for name, share in {"start": start, "until": until}.items():
            if not 0 < share <= 1:
                raise ValueError(f"{name} must lie in (0, 1], not {share}")
        self.start, self.until = start, until
        self.reached = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        net = pl_module.get_submodule("net")
        first = next(net.children())
        self.readers = [part for part in (first, *first.children()) if isinstance(part, SpatialTransformer)]
        images = pl_module.get_submodule("normalization")(trainer.datamodule.images["val"][:2])  # type: ignore[attr-defined]
        self.full = images.shape[2]
        self.step = max(4, round(self.full / 32) * 4)  # some four sizes, since each is compiled
        self.smallest = max(self.step, round(self.start * self.full / self.step) * self.step)
        if any(reader.output_size for reader in self.readers):
            self.readers = []
        self._read(self.smallest)
        precision = trainer.precision_plugin
        try:
            # Uncompiled: torch would compile once more for this size.
            with torch.no_grad(), torch.compiler.set_stance("force_eager"), precision.forward_context():
                net.eval()(images)
        except (RuntimeError, ValueError, AssertionError):
            self._read(self.full)
            self.readers = []
        net.train()
        self._read(self.full)
        if self.readers and self.smallest < self.full:
            log.info("images of %d pixels at first, which grow to %d", self.smallest, self.full)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any) -> None:
        # For each batch, because a validation within the epoch sets the full size.
        assert trainer.max_epochs is not None
        growing = self.until * trainer.max_epochs
        done = trainer.current_epoch / growing if growing >= 1 else 1.0
        side = self.smallest + round((self.full - self.smallest) * done / self.step) * self.step
        side = side if done < 1 and side < self.full else self.full
        self.reached = max(self.reached, side)
        self._read(self.reached)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._read(self.full)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._read(self.full)

    def state_dict(self) -> dict[str, int]:
        return {"reached": self.reached}  # images do not shrink if a run goes on for more epochs

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.reached = state_dict["reached"]

    def _read(self, side: int) -> None:
        for reader in self.readers:
            reader.output_size = (side, side) if side < self.full else None
