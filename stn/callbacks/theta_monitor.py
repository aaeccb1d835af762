"""What every transformer in the network does on average, in terms a person reads."""

import logging
from contextlib import ExitStack

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from stn.data.resident import ResidentDataModule
from stn.layers import Seen, SpatialTransformer, pixel_centres, pose_error, recording, transformers

log = logging.getLogger(__name__)


class ThetaMonitor(pl.Callback):
    """Logs θ over the validation set: histograms of each number, mean and spread of rotation, scale and shift.

    Scalars are named <transformer>/<quantity>_mean and _spread (standard deviation): rotation in degrees (circular
    mean and deviation), scale as a factor (below 1: zoomed in), shifts in pixels of the transformer's input. Where
    mirror images are scored, they count too. <transformer>/astray is the share of images of which more than half of
    what is read lies beyond the border, or that shrink to a line or a point; above a half, a warning is given.

    Where the data knows the poses, <transformer>/pose_error_pixels of the validation set, see `pose_error`, and
    test/<transformer>_pose_error_pixels of the test set, for transformers that read the image itself; of several
    processes, the mean of each one's.
    """

    def __init__(self) -> None:
        self.seen: dict[str, list[Seen]] = {}
        self._recording = ExitStack()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen = self._recording.enter_context(recording(pl_module.get_submodule("net")))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._recording.close()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_validation_start(trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_validation_end(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._recording.close()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, module in transformers(pl_module.get_submodule("net")).items():
            passes = self.seen[name]
            theta = torch.cat([one.theta for one in passes]).float()
            sums = trainer.strategy.reduce(moments(module, theta, passes[0].height, passes[0].width), reduce_op="sum")
            for quantity, (mean, spread) in summarize(sums).items():
                pl_module.log(f"{name}/{quantity}_mean", mean)
                pl_module.log(f"{name}/{quantity}_spread", spread)
            share = trainer.strategy.reduce(astray(module, theta).float().mean(), reduce_op="mean")
            pl_module.log(f"{name}/astray", share)
            if share > 0.5 and trainer.is_global_zero:
                log.warning(
                    "%s has lost the image: in %.0f %% of the validation images it reads what lies beyond the border, "
                    "or a line or a point; try a lower optimizer.localization_lr",
                    name,
                    100 * share,
                )
            self._log_pose_error(trainer, pl_module, name, module, "val", f"{name}/pose_error_pixels")
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                    for index, column in enumerate(theta.cpu().unbind(1)):
                        logger.experiment.add_histogram(f"{name}/theta_{index}", column, trainer.global_step)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, module in transformers(pl_module.get_submodule("net")).items():
            self._log_pose_error(trainer, pl_module, name, module, "test", f"test/{name}_pose_error_pixels")

    def _log_pose_error(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        name: str,
        module: SpatialTransformer,
        split: str,
        metric: str,
    ) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]  # set when fit is given one
        assert isinstance(data, ResidentDataModule)
        # Where mirror images are scored, every other pass is theirs.
        passes = self.seen[name][:: 2 if pl_module.hparams["score_mirrored"] else 1]
        height, width = passes[0].height, passes[0].width
        if split not in data.corners or (height, width) != data.images[split].shape[2:]:
            return  # a feature map has no corners of its own
        theta = torch.cat([one.theta for one in passes])
        if not theta.isfinite().all():
            return
        mine = slice(trainer.global_rank, None, trainer.world_size)
        # The first ones, where the trainer limits the batches.
        truth, labels = (of_all[split][mine][: len(theta)] for of_all in (data.corners, data.labels))
        if module.align_corners:  # ±1 is the centre of the outermost pixel, not its edge
            truth = truth / torch.tensor([1 - 1 / width, 1 - 1 / height])
            height, width = height - 1, width - 1
        error = pose_error(module.to_input, theta, truth, labels, height, width).mean()
        pl_module.log(metric, error.float(), sync_dist=True)


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


def astray(module: SpatialTransformer, theta: Tensor) -> Tensor:
    """For which images θ (N, P) reads more beyond the border than within, next to nothing, or is no number: (N,)."""
    points = module.to_input(theta.nan_to_num(0, 0, 0), pixel_centres(8, 8, device=theta.device).to(theta))
    inside = (points.abs() <= 1).all(dim=2).float().mean(dim=1) >= 0.5
    # The thinnest the points lie, along any line: the smaller eigenvalue of their covariance.
    x, y = (points - points.mean(dim=1, keepdim=True)).unbind(2)
    xx, yy, xy = (x * x).mean(dim=1), (y * y).mean(dim=1), (x * y).mean(dim=1)
    smallest = (xx + yy) / 2 - torch.hypot((xx - yy) / 2, xy)
    # Comparisons that no NaN passes.
    return ~(theta.isfinite().all(dim=1) & inside & (smallest >= 1e-4))
