"""Fills the tabs of TensorBoard that scalars, images and histograms leave empty."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from stn.callbacks.pictures import drawing, log_picture
from stn.callbacks.projector import Embedding, write_projector
from stn.callbacks.warp_gallery import spread_over_classes
from stn.classifier import Classifier
from stn.data.resident import ResidentDataModule
from stn.figures import draw_confusion, read_pixels, rendered
from stn.layers import recording, transformers

log = logging.getLogger(__name__)

CHARTS = {"rotation (degrees)": "rotation_degrees", "scale": "scale"}
CHARTS |= {"shift to the right (pixels)": "shift_x_pixels", "shift down (pixels)": "shift_y_pixels"}


class Dashboard(pl.Callback):
    """Shows what belongs together in one chart, and, after the test, what the tested network does.

    From the start the tab CUSTOM SCALARS has training and validation together, and for each transformer rotation, scale
    and shift with their spread, the errors of the pose and θ, see `ThetaMonitor`.
    After the test: the confusion matrix of the validation set, also in `folder`/confusion_matrix.png; GRAPHS has the
    network; PROJECTOR has test images, what each transformer reads of them, and the input of the last linear layer.
    folder: of the picture.
    images: how many images of the test set are in PROJECTOR, spread over the classes.
    Raises ValueError if images is below 1.
    """

    def __init__(self, folder: str, images: int = 300) -> None:
        if images < 1:
            raise ValueError(f"images must be 1 or more, not {images}")
        self.folder, self.count = Path(folder), images

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.ckpt_path is None:  # a run that is resumed has the layout
            for logger in tensorboards(trainer):
                logger.experiment.add_custom_scalars(layout(pl_module.get_submodule("net")))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        with torch.no_grad(), trainer.precision_plugin.forward_context(), uncompiled(pl_module.get_submodule("net")):
            with drawing("the confusion matrix"):
                self._draw_confusion(trainer, pl_module)
            for logger in tensorboards(trainer):
                with drawing("the projector"):
                    write_projector(Path(logger.log_dir), self._embeddings(trainer, pl_module))
                self._add_graph(logger, pl_module)

    def _draw_confusion(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = resident(trainer)
        matrix = MulticlassConfusionMatrix(len(data.classes), sync_on_compute=False).to(pl_module.device)
        batches = (of_all["val"].split(data.eval_batch_size) for of_all in (data.images, data.labels))
        for images, labels in zip(*batches, strict=True):
            matrix.update(pl_module(images), labels)
        counts = matrix.compute().cpu()
        about = f"validation, {counts.sum():,} images, of which {counts.trace() / counts.sum():.2%} are right"
        picture = rendered(draw_confusion(counts.tolist(), list(data.classes), about))
        self.folder.mkdir(parents=True, exist_ok=True)
        picture.save(self.folder / "confusion_matrix.png")
        log_picture(trainer.loggers, "wrong_or_right/confusion_matrix", picture, trainer.global_step)

    def _embeddings(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Embedding]:
        data, classifier = resident(trainer), pl_module
        assert isinstance(classifier, Classifier)
        net = classifier.net
        chosen = spread_over_classes(data.labels["test"].cpu(), self.count)
        images = data.images["test"][chosen.to(data.images["test"].device)]
        with recording(net) as records, inputs_of_last_linear(net) as features:
            predicted = net(classifier.normalization(images)).argmax(dim=1)
        labels = [data.classes[label] for label in data.labels["test"].cpu()[chosen]]
        rows = list(zip(labels, (data.classes[label] for label in predicted.cpu()), strict=True))
        found = [Embedding("images", small(images), images, rows)]
        for name, transformer in transformers(net).items():
            if records[name][-1].height == images.shape[2]:
                seen = read_pixels(transformer, classifier.normalization, records[name][-1].theta, images)
                found.append(Embedding(f"read by {name}", small(seen), seen, rows))
        return found + [Embedding("features", vectors, images, rows) for vectors in features]

    def _add_graph(self, logger: TensorBoardLogger, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module.example_input_array, Tensor)
        images = pl_module.get_submodule("normalization")(pl_module.example_input_array.to(pl_module.device))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what depends on the size of the images, which is fixed
                logger.experiment.add_graph(pl_module.get_submodule("net"), images)
        except Exception as error:  # a tracer has many classes of errors
            log.warning("the graph of the network could not be drawn: %s", " ".join(str(error).split())[:200])


@contextmanager
def inputs_of_last_linear(network: nn.Module) -> Iterator[list[Tensor]]:
    """While open, collects what the last linear layer of a network gets, (N, D) of each pass; without one, nothing."""
    found: list[Tensor] = []
    own = {part for module in transformers(network).values() for part in module.modules()}
    last = [module for module in network.modules() if isinstance(module, nn.Linear) and module not in own][-1:]
    hooks = [one.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].flatten(1))) for one in last]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def uncompiled(network: Any) -> Iterator[None]:
    """While open, a compiled network runs as it was: it cannot be traced, and would be compiled for other batches."""
    compiled, network._compiled_call_impl = network._compiled_call_impl, None
    try:
        yield
    finally:
        network._compiled_call_impl = compiled


def layout(network: nn.Module) -> dict[str, dict[str, list[Any]]]:
    """The charts of CUSTOM SCALARS: their tags, those of a margin in the order mean, low, high."""
    found: dict[str, dict[str, list[Any]]] = {
        "accuracy and loss": {name: ["Multiline", [f"{name}/train$", f"{name}/val$"]] for name in ("accuracy", "loss")}
    }
    for name in transformers(network):
        charts: dict[str, list[Any]] = {}
        for title, quantity in CHARTS.items():
            band = [f"{name}_band/{quantity}_{end}" for end in ("low", "high")]
            charts[title] = ["Margin", [f"{name}/{quantity}_mean", *band]]
        charts["pose error (pixels)"] = ["Multiline", [f"{name}/{error}_error_pixels$" for error in ("pose", "corner")]]
        charts["angle error (degrees)"] = ["Multiline", [f"{name}/angle_error_degrees$"]]
        charts["θ"] = ["Multiline", [f"{name}_theta/"]]
        found[name] = charts
    return found


def tensorboards(trainer: pl.Trainer) -> list[TensorBoardLogger]:
    """TensorBoard's loggers, in the first process alone."""
    return [one for one in trainer.loggers if isinstance(one, TensorBoardLogger) and trainer.is_global_zero]


def resident(trainer: pl.Trainer) -> ResidentDataModule:
    """The data of a trainer."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
    assert isinstance(data, ResidentDataModule)
    return data


def small(images: Tensor) -> Tensor:
    """Images (N, C, H, W) as vectors of at most 16 x 16 pixels, in [0, 1]."""
    side = min(16, *images.shape[2:])
    return nn.functional.adaptive_avg_pool2d(images.float() / 255, side).flatten(1)
