"""What every transformer in the network does on average, in terms a person reads."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn

from stn.layers import SpatialTransformer, transformers


class ThetaMonitor(pl.Callback):
    """Logs θ over the validation set: histograms of each number, mean and spread of rotation, scale and shift.

    Scalars are named <transformer>/<quantity>_mean and _spread (standard deviation): rotation in degrees (circular
    mean and deviation), scale as a factor (below 1: zoomed in), shifts in pixels of the transformer's input. Where
    mirror images are scored, they count too.
    """

    def __init__(self) -> None:
        self._found: dict[str, list[Tensor]] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._hooks: list[Any] = []

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._found.clear()
        for name, module in transformers(pl_module.get_submodule("net")).items():

            def keep_size(layer: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                self._sizes[name] = (inputs[0].shape[2], inputs[0].shape[3])

            def keep_theta(layer: nn.Module, inputs: Any, theta: Tensor, name: str = name) -> None:
                self._found.setdefault(name, []).append(theta.detach())

            self._hooks.append(module.register_forward_pre_hook(keep_size))
            self._hooks.append(module.head.register_forward_hook(keep_theta))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, module in transformers(pl_module.get_submodule("net")).items():
            theta = torch.cat(self._found[name]).float()
            for quantity, (mean, spread) in summarize(module, theta, *self._sizes[name]).items():
                pl_module.log(f"{name}/{quantity}_mean", mean, sync_dist=True)
                pl_module.log(f"{name}/{quantity}_spread", spread, sync_dist=True)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                    for index, column in enumerate(theta.cpu().unbind(1)):
                        logger.experiment.add_histogram(f"{name}/theta_{index}", column, trainer.global_step)


def summarize(module: SpatialTransformer, theta: Tensor, height: int, width: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and spread of what θ (N, P) does to an image of height x width pixels."""
    parts = module.warp.decompose(theta)
    resultant = torch.polar(torch.ones_like(parts["rotation"]), parts["rotation"]).mean()
    deviation = (-2 * resultant.abs().clamp(1e-12, 1).log()).sqrt()
    summary = {"rotation_degrees": (resultant.angle().rad2deg(), deviation.rad2deg())}
    for quantity, values in {
        "scale": parts["scale"],
        "shift_x_pixels": parts["shift_x"] * width / 2,
        "shift_y_pixels": parts["shift_y"] * height / 2,
    }.items():
        summary[quantity] = (values.mean(), values.std(unbiased=False))
    return summary
