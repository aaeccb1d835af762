"""Draws what the transformers read, after each epoch."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from stn.callbacks.pictures import drawing, log_picture
from stn.classifier import Classifier
from stn.data.resident import ResidentDataModule
from stn.figures import Reading, evenly, readings, sheet
from stn.layers import recording, transformers

MOST_SHOWN = 10  # TensorBoard keeps so many pictures of a tag, and drops others by chance
MOST_FRAMES = 60  # each takes a tenth of a second, also when a run is told to end


class WarpGallery(pl.Callback):
    """Draws what each transformer reads, after every validation; loggers get at most ten of these pictures.

    They show images, the regions that are read, and what is read. Above each image stands the class that the network
    sees in it, and whether that is right.

    folder: of the pictures.
    images: how many images of the validation set are shown, chosen once and spread over the classes.
    The image itself is warped, even for a transformer on a feature map. The pictures of all epochs are in
    `folder`/warps/<transformer>_epoch_<n>.png. At the end 60 of them, or all, become the animation
    `folder`/warps_<transformer>.gif.
    TensorBoard and other loggers get those of the epochs in `shown_epochs`.
    Raises ValueError if images is below 1.
    """

    def __init__(self, folder: str, images: int = 20) -> None:
        if images < 1:
            raise ValueError(f"images must be 1 or more, not {images}")
        self.folder, self.count = Path(folder), images
        self.frames: dict[str, list[Path]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {name: [path.name for path in paths] for name, paths in self.frames.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.frames = {
            name: [self.folder / "warps" / Path(frame).name for frame in frames] for name, frames in state_dict.items()
        }

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
        assert isinstance(data, ResidentDataModule)
        self.chosen = spread_over_classes(data.labels["val"].cpu(), self.count)
        self.originals = data.images["val"][self.chosen.to(data.images["val"].device)]
        self.labels, self.classes = data.labels["val"].cpu()[self.chosen], data.classes

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        assert isinstance(pl_module, Classifier)
        epoch, network, normalization = trainer.current_epoch + 1, pl_module.net, pl_module.normalization
        with trainer.precision_plugin.forward_context(), torch.no_grad(), recording(network) as records:
            predicted = network(normalization(self.originals)).argmax(dim=1).cpu()
        right, names = (predicted == self.labels).tolist(), [self.classes[label] for label in predicted]
        for name, transformer in transformers(network).items():
            with drawing(f"what {name} reads in epoch {epoch}"):
                theta = records[name][-1].theta
                self._draw(trainer, name, readings(transformer, normalization, theta, self.originals, names, right))

    def _draw(self, trainer: pl.Trainer, name: str, seen: list[Reading]) -> None:
        epoch = trainer.current_epoch + 1
        picture = sheet(seen, f"{name}, epoch {epoch}")
        if epoch in shown_epochs(trainer.max_epochs or epoch, trainer.check_val_every_n_epoch or 1):
            log_picture(trainer.loggers, f"warps/{name}", picture, trainer.global_step - 1)
        path = self.folder / "warps" / f"{name}_epoch_{epoch:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        self.frames.setdefault(name, []).append(path)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._animate()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._animate()

    def _animate(self) -> None:
        for name, drawn in self.frames.items():
            with drawing(f"the animation of {name}"):
                paths = evenly([path for path in drawn if path.exists()], MOST_FRAMES)
                frames = [Image.open(path, formats=["PNG"]).quantize(128) for path in paths]
                # The last frame stays for a second.
                times = [200] * (len(frames) - 1) + [1000]
                path = self.folder / f"warps_{name}.gif"
                if frames:
                    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0)


def shown_epochs(last: int, every: int = 1) -> set[int]:
    """At most ten of the epochs up to `last` of which each `every`th is validated: evenly, with the first and last."""
    return set(evenly(range(every, last + 1, every), MOST_SHOWN))


def spread_over_classes(labels: Tensor, count: int) -> Tensor:
    """Indices of `count` images (or all, if fewer), the classes in turn: (count,)."""
    rank = torch.zeros_like(labels)
    for label in labels.unique():
        of_class = labels == label
        rank[of_class] = torch.arange(int(of_class.sum()))
    order = torch.argsort(rank * (int(labels.max()) + 1) + labels)
    return order[:count]
