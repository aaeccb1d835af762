"""What every transformer in the network does on average, in terms a person reads."""

from contextlib import ExitStack

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from stn.layers import Seen, SpatialTransformer, recording, transformers


class ThetaMonitor(pl.Callback):
    """Logs θ over the validation set: histograms of each number, mean and spread of rotation, scale and shift.

    Scalars are named <transformer>/<quantity>_mean and _spread (standard deviation): rotation in degrees (circular
    mean and deviation), scale as a factor (below 1: zoomed in), shifts in pixels of the transformer's input. Where
    mirror images are scored, they count too.
    """

    def __init__(self) -> None:
        self.seen: dict[str, list[Seen]] = {}
        self._recording = ExitStack()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen = self._recording.enter_context(recording(pl_module.get_submodule("net")))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._recording.close()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, module in transformers(pl_module.get_submodule("net")).items():
            passes = self.seen[name]
            theta = torch.cat([one.theta for one in passes]).float()
            sums = trainer.strategy.reduce(moments(module, theta, passes[0].height, passes[0].width), reduce_op="sum")
            for quantity, (mean, spread) in summarize(sums).items():
                pl_module.log(f"{name}/{quantity}_mean", mean)
                pl_module.log(f"{name}/{quantity}_spread", spread)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                    for index, column in enumerate(theta.cpu().unbind(1)):
                        logger.experiment.add_histogram(f"{name}/theta_{index}", column, trainer.global_step)


QUANTITIES = ("rotation_degrees", "scale", "shift_x_pixels", "shift_y_pixels")


def moments(module: SpatialTransformer, theta: Tensor, height: int, width: int) -> Tensor:
    """What θ (N, P) does to an image of height x width pixels, as sums that can be added up over processes: (3, 4).

    For each of `QUANTITIES` how many, the sum and the sum of squares; for the rotation how many, the sum of its cosine
    and of its sine. In float64.
    """
    parts = {name: values.double() for name, values in module.decompose(theta).items()}
    turns = parts["rotation"]
    count = torch.ones_like(turns)
    columns = [torch.stack((count, turns.cos(), turns.sin()))]
    for values in (parts["scale"], parts["shift_x"] * width / 2, parts["shift_y"] * height / 2):
        columns.append(torch.stack((count, values, values.square())))
    return torch.stack(columns, dim=1).sum(dim=2)


def summarize(sums: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and spread of each of `QUANTITIES` from their `moments`."""
    count, first, second = sums
    mean, spread = first / count, (second / count - (first / count).square()).clamp(min=0).sqrt()
    resultant = torch.hypot(first[0], second[0]) / count[0]
    mean[0] = torch.atan2(second[0], first[0]).rad2deg()
    spread[0] = (-2 * resultant.clamp(1e-12, 1).log()).sqrt().rad2deg()
    return dict(zip(QUANTITIES, zip(mean.float(), spread.float(), strict=True), strict=True))
