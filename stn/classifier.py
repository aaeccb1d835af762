"""The LightningModule: a network built from a config, its loss, metrics and optimizer."""

import math
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any, get_args

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import MLFlowLogger, WandbLogger
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from stn.check import TTA, TTA_OF_POSES
from stn.errors import DivergedError
from stn.layers import Rotation, RotationClasses, SpatialTransformer, figure_points, pixel_centres, sample, transformers
from stn.layers.sampling import without_autocast
from stn.networks import Normalization, Whitening

TURNS = 12  # round the full circle
CHECKPOINT_FORMAT = 3  # to be increased by a change that cannot open the checkpoints before it


class Classifier(pl.LightningModule):
    """A network that classifies images, trained by cross-entropy. It takes pixels, and normalizes them itself.

    All arguments are primitives. So a checkpoint can build the network again, and loads with `weights_only=True`.
    model: config of the network, a dict with `_target_`, which is called with in_channels, image_size and num_classes.
    optimizer: config of an `Optimization`, a dict with `_target_`.
    classes: the names of the classes.
    channels, image_size: the number of channels of the images, and their side in pixels.
    label_smoothing: of the loss in training; 0 in validation and test.
    pose_weight: of the loss of the first transformer against the true poses, where the data set knows them, see
        `Warp.pose_loss`.
    pose_label_weight: of the loss of the labels on the features of the first transformer's localization, by a head that
        is used in training alone. Features that tell the classes apart also tell best which way is up.
    tta: the views of each image whose probabilities are averaged outside training. none: the image; mirror: its mirror
        image too; six: also both shifted by a pixel towards two corners, each of these four half as much (K. Jordan
        2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3.5); turns: the image in 12 directions, of
        which the one with the surest class alone counts; poses: the image and its mirror image, each as the
        transformer reads it in its two likeliest poses, weighted by how likely they are; unmirrored_poses: the image
        alone so. Poses need `RotationClasses`.
    channels_last: whether images and weights are in the channels-last memory format.
    Raises ValueError for an unknown `tta`, and for settings that need a transformer where there is none.
    """

    def __init__(
        self,
        model: dict[str, Any],
        optimizer: dict[str, Any],
        classes: list[str],
        channels: int = 3,
        image_size: int = 32,
        label_smoothing: float = 0.0,
        pose_weight: float = 0.0,
        pose_label_weight: float = 0.0,
        tta: TTA = "none",
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.normalization = Normalization(channels)
        self.net: torch.nn.Module = instantiate(
            model, in_channels=channels, image_size=image_size, num_classes=len(classes)
        )
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.net.to(memory_format=self.memory_format)
        self.example_input_array = torch.zeros(2, channels, image_size, image_size, dtype=torch.uint8)
        self.optimization = instantiate(optimizer)
        self.label_smoothing = label_smoothing
        self.tta = tta
        self.pose_weight, self.pose_label_weight = pose_weight, pose_label_weight
        self.label_head: torch.nn.Module | None = None
        if pose_label_weight:
            first = next(iter(transformers(self.net).values()), None)
            if first is None:
                raise ValueError(f"pose_label_weight={pose_label_weight} needs a transformer")
            self.label_head = torch.nn.Linear(first.head.in_features, len(classes))
        self.looks: list[tuple[Tensor, Tensor]] = []  # features and θ of each look of the first transformer in a step
        # Metrics of the classification; stn.metrics has those of θ.
        metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(len(classes), average="micro", validate_args=False),
                "loss": MeanMetric(nan_strategy="disable"),
            }
        )
        self.train_metrics = metrics.clone(prefix="train/")
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []  # predictions, targets and losses not yet in metrics
        self.restarts = 0  # after divergence, each with half the learning rate
        self.data_digest = ""  # of the training set
        self.random_state: Tensor | None = None  # of a run that is resumed, until its first epoch starts

    @classmethod
    def load_from_checkpoint(cls, *checkpoint: Any, **settings: Any) -> Any:
        """Refused: Lightning's own loading builds whatever the file names, and unpickles what a server sends."""
        raise TypeError("open a checkpoint by stn.Run.open(path).classifier, which executes nothing in the file")

    @property
    def tta(self) -> TTA:
        """The views of each image outside training, as the class describes."""
        return self._tta

    @tta.setter
    def tta(self, tta: TTA) -> None:
        if tta not in get_args(TTA):
            raise ValueError(f"tta must be one of {', '.join(get_args(TTA))}, not {tta!r}")
        if tta in TTA_OF_POSES:
            first = next(self.net.children())
            if not (
                isinstance(first, SpatialTransformer)
                and isinstance(first.warp, RotationClasses)
                and first.num_looks == 1
                and not first.append_theta
            ):
                raise ValueError(
                    f"tta={tta} needs a transformer on the image with model/warp=rotation_classes and a single look"
                )
        self._tta: TTA = tta

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (N, num_classes), in float32, of images (N, C, H, W), uint8 or floats in [0, 1]."""
        images = self.normalization(images.contiguous(memory_format=self.memory_format))
        if self.training or self.tta == "none":
            scores: Tensor = self.net(images).float()
            return scores
        if self.tta == "turns":
            turned = torch.stack([self.net(turn(images, 2 * math.pi * k / TURNS)).float() for k in range(TURNS)])
            surest = turned.softmax(2).amax(2).argmax(0)
            return turned.gather(0, surest[None, :, None].expand(1, -1, turned.shape[2]))[0]
        if self.tta in TTA_OF_POSES:
            shares = self._of_poses(images)
            if self.tta == "poses":
                shares = (shares + self._of_poses(images.flip(3))) / 2
            return shares.clamp(min=torch.finfo(shares.dtype).tiny).log()
        views = [images, images.flip(3)]  # the image itself first, see ThetaMonitor
        if self.tta == "six":
            padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
            shifted = [padded[:, :, :-2, :-2], padded[:, :, 2:, 2:]]
            views += [*shifted, *(view.flip(3) for view in shifted)]
        weights = images.new_tensor({2: [1 / 2] * 2, 6: [1 / 4] * 2 + [1 / 8] * 4}[len(views)], dtype=torch.float32)
        probabilities = torch.stack([self.net(view).float() for view in views]).log_softmax(2)
        return (probabilities + weights.log()[:, None, None]).logsumexp(0)

    def _of_poses(self, images: Tensor) -> Tensor:
        """The probabilities (N, num_classes) of normalized images, over the two likeliest poses of each."""
        first, *rest = self.net.children()
        assert isinstance(first, SpatialTransformer) and isinstance(first.warp, RotationClasses)
        classifier = torch.nn.Sequential(*rest)
        read, theta = first(images, return_theta=True)
        other, share = first.warp.second_best(theta)
        likeliest, second = (classifier(seen).float().softmax(1) for seen in (read, first.transform(images, other)))
        return second.lerp(likeliest, share[:, None])

    @property
    def passes(self) -> int:
        """How often the first transformer reads each image outside training."""
        return {"none": 1, "mirror": 2, "six": 6, "turns": TURNS, "poses": 2, "unmirrored_poses": 1}[self.tta]

    def on_fit_start(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
        self.normalization.fit(data.mean, data.std)
        for module in self.net.modules():
            if isinstance(module, Whitening) and not module.fitted:
                images = data.images["train"]
                # About a thousand images from all over the set, the same ones in every process.
                module.fit(self.normalization(images[:: -(-len(images) // 1000)]))

        if self.pose_weight or self.label_head:
            first = next(iter(transformers(self.net).values()))
            self.watching = first.head.register_forward_hook(self._keep_look)

    def _keep_look(self, head: torch.nn.Module, features: tuple[Tensor], theta: Tensor) -> None:
        if self.training:
            self.looks.append((features[0], theta))

    def on_fit_end(self) -> None:
        if self.pose_weight or self.label_head:
            self.watching.remove()
            self.looks.clear()

    def on_train_epoch_start(self) -> None:
        self.pending.clear()  # an interrupted epoch may have left some
        if self.random_state is not None:  # only now, after everything that a start draws
            torch.set_rng_state(self.random_state.cpu())
            self.random_state = None

    def training_step(self, batch: tuple[Tensor, ...]) -> Tensor:
        self.looks.clear()
        images, labels, *figures = batch
        scores, target, losses = self._score((images, labels), self.label_smoothing)
        # Predictions, not scores: a CUDA graph overwrites the scores in the next step.
        self.pending.append((scores.argmax(1), target, losses.detach()))
        loss = losses.mean()
        if self.pose_weight:
            loss = loss + self.pose_weight * self._pose_loss(*figures)
        if self.label_head:
            features, _ = self.looks[0]
            loss = loss + self.pose_label_weight * F.cross_entropy(self.label_head(features.float()), labels)
        return loss

    def _pose_loss(self, figure: Tensor) -> Tensor:
        """The loss of the looks against the figures (N, 16, 2), see `Warp.pose_loss`."""
        warp = next(iter(transformers(self.net).values())).warp
        total = figure.new_zeros(())
        with without_autocast(figure.device):
            for look, (_, theta) in enumerate(self.looks):
                if look:  # which sees the figure as the one before has placed it
                    figure = warp.invert(self.looks[look - 1][1].detach(), figure)
                known = figure.isfinite().flatten(1).all(dim=1, keepdim=True)  # a warp that folds has no inverse there
                each = warp.pose_loss(theta, torch.where(known[:, :, None], figure, figure_points().to(figure)))
                total = total + (each * known[:, 0]).mean()
        self.log("train/pose_loss", total.detach(), on_step=False, on_epoch=True)
        return total

    def on_train_batch_end(self, *step: Any) -> None:
        trainer = self.trainer
        interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it
        is_last = trainer.is_last_batch or trainer.should_stop or trainer.global_step == trainer.max_steps
        # Updating the metrics takes a tenth of a small network's step. So they are updated once for several steps.
        if is_last or (interval and trainer.global_step % interval == 0):
            predictions, targets, losses = map(torch.cat, zip(*self.pending, strict=True))
            self.train_metrics.update(preds=predictions, target=targets, value=losses)
            self._log(self.train_metrics)
            self.log("train/loss_step", losses.mean(), on_step=True, on_epoch=False)
            self.pending.clear()
            self._check_finite(losses)

    def _check_finite(self, losses: Tensor) -> None:
        """Raises DivergedError for losses that are not finite. It waits for the device, so it is not called often."""
        if not losses.isfinite().all():
            raise self._diverged(f"the loss is {losses.mean().item()}")

    def _diverged(self, what: str) -> DivergedError:
        rate = max(group["lr"] for group in self.trainer.optimizers[0].param_groups)
        return DivergedError(
            f"training has diverged: {what} in epoch {self.current_epoch + 1}, at step {self.global_step}, with rates "
            f"up to {rate:.3g}; try a lower optimizer.lr or optimizer.localization_lr_scale, or "
            "trainer.gradient_clip_val=1.0"
        )

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        scores, targets, losses = self._score(batch)
        if len(targets):  # with more processes than images, one has none
            self.val_metrics.update(preds=scores, target=targets, value=losses)
        self._log(self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self._check_finite(self.val_metrics["loss"].compute())

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        scores, targets, losses = self._score(batch)
        if len(targets):  # with more processes than images, one has none
            self.test_metrics.update(preds=scores, target=targets, value=losses)
        self._log(self.test_metrics)

    def configure_optimizers(self) -> Any:
        trained = torch.nn.ModuleList([self.net, *filter(None, [self.label_head])])
        steps = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = self.optimization.build(trained, steps, clipped=bool(self.trainer.gradient_clip_val))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "learning_rate"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the format of the checkpoint, the number of epochs so far, the versions, and the random state.

        Loggers write what they were given first, so that it is there after a crash. The means of the epoch come to them
        only after the checkpoint, so it has those too. Raises DivergedError for weights that are not finite, which the
        last step of an epoch may leave, so that the checkpoint before is kept.
        """
        for name, value in checkpoint["state_dict"].items():
            if not value.isfinite().all():
                raise self._diverged(f"{name} is not finite")
        for logger in self.trainer.loggers:
            logger.save()
        means = self.trainer.callback_metrics
        checkpoint["stn"] = {
            "format": CHECKPOINT_FORMAT,
            "epoch": checkpoint["epoch"] + 1,
            "versions": versions(),
            "random_state": torch.get_rng_state(),
            "restarts": self.restarts,
            "data": self.data_digest,
            "logger_runs": {
                type(logger).__name__: logger.version
                for logger in self.trainer.loggers
                if isinstance(logger, (MLFlowLogger, WandbLogger))
            },
            "train_means": {name: means[name].item() for name in ("train/accuracy", "train/loss") if name in means},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Changes what a checkpoint says to what holds now.

        It may name files of its own folder alone: the run may have been moved, or come from anybody. Its learning rates
        are halved once for each restart since.
        """
        scale = 0.5 ** (self.restarts - checkpoint["stn"].get("restarts", 0))
        for optimizer in checkpoint.get("optimizer_states", ()):
            for group in optimizer["param_groups"]:
                for name in {"lr", "initial_lr", "max_lr", "min_lr"} & group.keys():
                    group[name] *= scale
        for schedule in checkpoint.get("lr_schedulers", ()):
            for name in {"base_lrs", "_last_lr"} & schedule.keys():
                schedule[name] = [rate * scale for rate in schedule[name]]
        for callback in self.trainer.checkpoint_callbacks:
            state = checkpoint.get("callbacks", {}).get(callback.state_key)
            if not state or not isinstance(callback, ModelCheckpoint):
                continue
            folder = str(callback.dirpath)

            def here(path: str, folder: str = folder) -> str:
                name = os.path.basename(path)  # noqa: PTH119
                return os.path.join(folder, name) if name.endswith(".ckpt") else ""  # noqa: PTH118

            state["dirpath"] = folder
            for name in ("best_model_path", "last_model_path", "kth_best_model_path"):
                state[name] = here(state[name])
            state["best_k_models"] = {here(path): score for path, score in state["best_k_models"].items()}

    def _score(self, batch: tuple[Tensor, Tensor], label_smoothing: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (N, num_classes), targets (N,) and losses (N,). The target of a mixed image is its largest class."""
        images, labels = batch
        scores = self(images)
        losses = F.cross_entropy(scores, labels, label_smoothing=label_smoothing, reduction="none")
        return scores, labels.argmax(1) if labels.is_floating_point() else labels, losses

    def _log(self, metrics: MetricCollection) -> None:
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=True)


def turn(images: Tensor, angle: float) -> Tensor:
    """Images (N, C, H, W), turned by an angle in radians; what was beyond the border is its nearest pixel."""
    theta, centres = images.new_full((1, 1), angle), pixel_centres(*images.shape[2:], device=images.device)
    with without_autocast(images.device):
        points = Rotation()(theta, centres)
    return sample(images, points.view(1, *images.shape[2:], 2).expand(images.shape[0], -1, -1, -1))


def versions() -> dict[str, str]:
    """Versions of this package and of what it computes with."""
    found = {}
    for name in ("stn-experiments", "torch", "pytorch-lightning"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout that is not installed
            found[name] = "unknown"
    return found
