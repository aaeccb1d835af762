"""The LightningModule: a network composed from a config, its loss, metrics and optimizer."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from stn.data.batches import Batches
from stn.networks import Whitening

SCORED_AT_ONCE = 50  # steps


class Classifier(pl.LightningModule):
    """Trains a network to name the class of an image, by cross-entropy.

    model: the network as a config (a dict of primitives with `_target_`), so that a checkpoint holds all that is
    needed to build it again and loads with `weights_only=True`. optimizer: likewise, of `Optimization`.
    label_smoothing: in training only. score_mirrored: outside training, each
    image and its mirror image are scored, and their probabilities averaged. channels_last: the memory format.
    """

    def __init__(
        self,
        model: dict[str, Any],
        optimizer: dict[str, Any],
        num_classes: int,
        label_smoothing: float = 0.0,
        score_mirrored: bool = False,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net: torch.nn.Module = instantiate(model)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.net.to(memory_format=self.memory_format)
        self.optimization = instantiate(optimizer)
        self.label_smoothing, self.score_mirrored = label_smoothing, score_mirrored
        metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
                "loss": MeanMetric(nan_strategy="disable"),
            }
        )
        self.train_metrics = metrics.clone(prefix="train/")
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self.scored: list[tuple[Tensor, Tensor, Tensor]] = []  # a step's classes, targets, losses; not yet in metrics

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (N, num_classes) of normalized images (N, C, H, W), in float32."""
        images = images.contiguous(memory_format=self.memory_format)
        scores = self.net(images).float()
        if self.training or not self.score_mirrored:
            return scores
        views = torch.stack((scores, self.net(images.flip(3)).float()))
        return views.log_softmax(2).logsumexp(0) - math.log(2)

    def on_fit_start(self) -> None:
        for module in self.net.modules():
            if isinstance(module, Whitening) and not module.fitted:
                batches: Batches = self.trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
                # The same images for every process, spread over the set.
                module.fit(batches.normalize(batches.images[:: -(-len(batches.images) // 1000)]))

    def on_train_epoch_start(self) -> None:
        self.scored.clear()  # what an interrupted run left

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        scores, target, losses = self._score(batch, self.label_smoothing)
        # The classes, not the scores, which a CUDA graph overwrites in the next step.
        self.scored.append((scores.argmax(1), target, losses.detach()))
        return losses.mean()

    def on_train_batch_end(self, *step: Any) -> None:
        trainer = self.trainer
        ends = trainer.is_last_batch or trainer.should_stop or trainer.global_step == trainer.max_steps
        # Metrics are many small operations, a tenth of a small network's step: those of some steps are done at once.
        if ends or len(self.scored) == SCORED_AT_ONCE:
            self._update(self.train_metrics, *map(torch.cat, zip(*self.scored, strict=True)))
            self._log(self.train_metrics)
            self.scored.clear()

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self._update(self.val_metrics, *self._score(batch))
        self._log(self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self._update(self.test_metrics, *self._score(batch))
        self._log(self.test_metrics)

    def on_train_epoch_end(self) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        self.log("learning_rate", next(g["lr"] / g["factor"] for g in optimizer.param_groups if g["factor"]))

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = self.optimization.build(self.net, steps, clipped=bool(self.trainer.gradient_clip_val))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _score(self, batch: tuple[Tensor, Tensor], label_smoothing: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (N, num_classes), the class each image is (of a mixed one, that it shows most of), and losses (N,)."""
        images, labels = batch
        scores = self(images)
        losses = F.cross_entropy(scores, labels, label_smoothing=label_smoothing, reduction="none")
        return scores, labels.argmax(1) if labels.is_floating_point() else labels, losses

    def _update(self, metrics: MetricCollection, scores: Tensor, target: Tensor, losses: Tensor) -> None:
        metrics.update(preds=scores, target=target, value=losses)

    def _log(self, metrics: MetricCollection) -> None:
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=True)
