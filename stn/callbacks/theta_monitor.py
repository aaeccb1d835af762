"""Logs what every transformer in the network does on average: rotation, scale, shift and pose error."""

import logging
from contextlib import ExitStack

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from stn.classifier import Classifier
from stn.data.resident import ResidentDataModule
from stn.layers import SpatialTransformer, ThetaRecord, recording, transformers
from stn.metrics import QUANTITIES, PoseError, ThetaStatistics

log = logging.getLogger(__name__)


class ThetaMonitor(pl.Callback):
    """Logs θ over the validation set: `ThetaStatistics` as <transformer>/<name>, and for TensorBoard `log_theta`.

    Of several views of an image, the image itself counts. It warns once when more than half of the images are lost.

    If the data has poses, it logs each of `POSE_ERRORS`, as <transformer>/<name> of the validation set and as
    test/<transformer>_<name> of the test set, see `PoseError`. Only transformers on the image have them.
    """

    def __init__(self) -> None:
        self.records: dict[str, list[ThetaRecord]] = {}
        self._recording = ExitStack()
        self._told: set[str] = set()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.records = self._recording.enter_context(recording(pl_module.get_submodule("net")))

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
            seen = self._of_images(pl_module, name)
            theta = torch.cat([one.theta for one in seen]).float()
            statistics = ThetaStatistics(module.to_input).to(theta.device)
            statistics.update(theta, seen[0].height, seen[0].width)
            values = statistics.compute()
            # The values are the same in all processes; sync_dist only avoids Lightning's warning.
            pl_module.log_dict({f"{name}/{key}": value for key, value in values.items()}, sync_dist=True)
            if values["lost"] > 0.5 and trainer.is_global_zero and name not in self._told:
                self._told.add(name)
                log.warning(
                    "%s has lost the image: in %.0f %% of the validation images it reads beyond the border, or a line "
                    "or a point. If %s/lost stays high after the first epochs, set optimizer.localization_lr_scale to "
                    "a third or less of what it is.",
                    name,
                    100 * values["lost"],
                    name,
                )
            self._log_pose_error(trainer, pl_module, name, module, "val", f"{name}/")
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero and not trainer.sanity_checking:
                    log_theta(logger, name, theta, values, trainer.global_step - 1)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, module in transformers(pl_module.get_submodule("net")).items():
            self._log_pose_error(trainer, pl_module, name, module, "test", f"test/{name}_")

    def _log_pose_error(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        name: str,
        module: SpatialTransformer,
        split: str,
        prefix: str,
    ) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
        assert isinstance(data, ResidentDataModule)
        seen = self._of_images(pl_module, name)
        height, width = seen[0].height, seen[0].width
        if split not in data.figures or (height, width) != data.images[split].shape[2:]:
            return
        theta = torch.cat([one.theta for one in seen])
        mine = slice(trainer.global_rank, None, trainer.world_size)
        # Fewer images if the trainer limits the batches.
        truth, labels = (of_all[split][mine][: len(theta)] for of_all in (data.figures, data.labels))
        error = PoseError(module.to_input, height, width, align_corners=module.align_corners).to(theta.device)
        error.update(theta, truth, labels)
        pl_module.log_dict({prefix + key: value for key, value in error.compute().items()}, sync_dist=True)

    def _of_images(self, pl_module: pl.LightningModule, name: str) -> list[ThetaRecord]:
        """What a transformer did with the images themselves, each of which is the first of its views."""
        seen, first = self.records[name], next(iter(self.records.values()))
        assert isinstance(pl_module, Classifier)
        return seen[:: pl_module.passes * len(seen) // len(first)]


def log_theta(logger: TensorBoardLogger, name: str, theta: Tensor, statistics: dict[str, Tensor], step: int) -> None:
    """Logs what TensorBoard alone shows: histograms and means of θ (N, P), and mean - spread and mean + spread."""
    shown = theta.nan_to_num(0.0).clamp(-1e6, 1e6).cpu()  # TensorBoard's bins end at 1e20
    for index, column in enumerate(shown.unbind(1)):
        logger.experiment.add_histogram(f"{name}/theta_{index}", column, step)
        logger.experiment.add_scalar(f"{name}_theta/{index}", column.mean(), step)
    for quantity in QUANTITIES:
        mean, spread = (statistics[f"{quantity}_{part}"] for part in ("mean", "spread"))
        logger.experiment.add_scalar(f"{name}_band/{quantity}_low", mean - spread, step)
        logger.experiment.add_scalar(f"{name}_band/{quantity}_high", mean + spread, step)
