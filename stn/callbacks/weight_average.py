"""Averages the weights."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage(EMAWeightAveraging):
    """Lightning's moving average of the weights, which is validated, drawn, kept in checkpoints and tested.

    decay: the share of the average that is kept in each step.
    Lightning's own callback draws and tests the weights without averaging, keeps the average on the CPU, and reads a
    number back from the device in every step.
    Raises ValueError for a decay outside [0, 1).
    """

    def __init__(self, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), not {decay}")
        super().__init__(decay=decay)
        self.average = get_ema_multi_avg_fn(decay)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._average_model is not None
        self._average_model.to(pl_module.device)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any) -> None:
        if trainer.global_step > self._latest_update_step:
            assert self._average_model is not None
            tensors = [(*of.parameters(), *of.buffers()) for of in (self._average_model.module, pl_module)]
            pairs = list(zip(*tensors, strict=True))
            averages, values = zip(*[pair for pair in pairs if pair[0].is_floating_point()], strict=True)
            if self._latest_update_step:
                self.average(averages, values, None)
            else:
                torch._foreach_copy_(averages, values)
            for count, value in pairs:
                if not count.is_floating_point():
                    count.copy_(value)
            self._latest_update_step = trainer.global_step

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pass  # not yet: the gallery draws in on_validation_end, and needs the average

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == "fit":  # a test takes the checkpoint's own weights, which are the average
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
