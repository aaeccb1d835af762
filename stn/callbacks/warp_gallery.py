"""Draws what the transformers read, after each epoch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image, ImageDraw, ImageFont
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from stn.callbacks.pictures import drawing
from stn.data.resident import ResidentDataModule
from stn.layers import SpatialTransformer, thetas, transformers

COLUMNS = 10
# In pixels of the picture.
SIDE = 96  # of an image
GAP = 16  # around an image, for outlines that leave it
CELL = SIDE + 2 * GAP
MARGIN = 64
TOP = 20
BLOCK = TOP + 2 * CELL - GAP
OUTLINE = "red"


class WarpGallery(pl.Callback):
    """Draws a picture for each transformer after every validation: images, the regions it reads, and what it reads.

    images: how many of the validation set, chosen once and spread over the classes.
    The image itself is warped, even for a transformer on a feature map. The pictures go to TensorBoard and to
    `folder`/warps/<transformer>_epoch_<n>.png. At the end they become the animation `folder`/warps_<transformer>.gif.
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
        self.frames = {name: [self.folder / "warps" / frame for frame in frames] for name, frames in state_dict.items()}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
        assert isinstance(data, ResidentDataModule)
        self.chosen = spread_over_classes(data.labels["val"].cpu(), self.count)
        self.originals = data.images["val"][self.chosen.to(data.images["val"].device)]
        self.names = [data.classes[label] for label in data.labels["val"].cpu()[self.chosen]]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        epoch = trainer.current_epoch + 1
        network = pl_module.get_submodule("net")
        with trainer.precision_plugin.forward_context():
            found = thetas(network, pl_module.get_submodule("normalization")(self.originals))
        for name, transformer in transformers(network).items():
            with drawing(f"what {name} reads in epoch {epoch}"):
                self._draw(trainer, name, transformer, found[name], epoch)

    def _draw(self, trainer: pl.Trainer, name: str, transformer: SpatialTransformer, theta: Tensor, epoch: int) -> None:
        picture = draw(transformer, theta, self.originals, self.names, f"{name}, epoch {epoch}")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                shown = np.asarray(picture)
                logger.experiment.add_image(f"warps/{name}", shown, trainer.global_step - 1, dataformats="HWC")
        path = self.folder / "warps" / f"{name}_epoch_{epoch:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        self.frames.setdefault(name, []).append(path)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._animate()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._animate()

    def _animate(self) -> None:
        for name, paths in self.frames.items():
            with drawing(f"the animation of {name}"):
                frames = [Image.open(path).quantize(128) for path in paths if path.exists()]
                # The last frame stays for a second.
                times = [200] * (len(frames) - 1) + [1000]
                path = self.folder / f"warps_{name}.gif"
                if frames:
                    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0)


def spread_over_classes(labels: Tensor, count: int) -> Tensor:
    """Indices of `count` images (or all, if fewer), the classes in turn: (count,)."""
    rank = torch.zeros_like(labels)
    for label in labels.unique():
        of_class = labels == label
        rank[of_class] = torch.arange(int(of_class.sum()))
    order = torch.argsort(rank * (int(labels.max()) + 1) + labels)
    return order[:count]


def square_outline(per_side: int = 24) -> Tensor:
    """Points along the border of the square [-1, 1], clockwise and closed: (4 per_side + 1, 2)."""
    along = torch.linspace(-1, 1, per_side + 1)[:-1]
    one = torch.ones_like(along)
    sides = [(along, -one), (one, along), (-along, one), (-one, -along)]
    points = torch.cat([torch.stack(side, dim=1) for side in sides])
    return torch.cat((points, points[:1]))


@torch.no_grad()
def draw(transformer: SpatialTransformer, theta: Tensor, images: Tensor, names: list[str], title: str) -> Image.Image:
    """Images (N, C, H, W) uint8 with the outline of the region that θ (N, P) samples, and below them the samples."""
    height, width = images.shape[-2:]
    warped = transformer.transform(images.float(), theta).round().clamp(0, 255).byte()
    outline = transformer.to_input(theta, square_outline().to(theta))
    if transformer.align_corners:  # there ±1 is the centre of the outermost pixel, not its edge
        outline = outline * torch.tensor([1 - 1 / width, 1 - 1 / height]).to(outline)
    corners = (outline.cpu() + 1) / 2 * SIDE + GAP

    columns = min(COLUMNS, len(images))
    blocks = -(-len(images) // columns)
    canvas = Image.new("RGB", (MARGIN + columns * CELL, TOP + blocks * BLOCK), "white")
    brush, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=12)
    brush.text((4, 4), title, "black", font)
    for index, name in enumerate(names):
        block, column = divmod(index, columns)
        left, top = MARGIN + column * CELL, TOP + block * BLOCK
        cell = to_picture(images[index])
        ImageDraw.Draw(cell).line([(x, y) for x, y in corners[index].tolist()], OUTLINE, width=2)
        canvas.paste(cell, (left, top + TOP))
        canvas.paste(to_picture(warped[index]), (left, top + TOP + CELL - GAP))
        brush.text((left + GAP, top + TOP - 4), name, "black", font)
        if column == 0:
            brush.text((8, top + TOP + CELL // 2), "input", "black", font)
            brush.text((8, top + TOP + CELL + CELL // 2 - GAP), "sampled", "black", font)
    return canvas


def to_picture(image: Tensor) -> Image.Image:
    """An image (C, H, W) uint8 as a cell of the gallery, its pixels kept as squares.

    With one or two channels the first is shown in grey, otherwise the first three as red, green and blue.
    """
    shown = image[:3] if len(image) > 2 else image[:1].expand(3, -1, -1)
    picture = Image.fromarray(shown.permute(1, 2, 0).cpu().contiguous().numpy())
    cell = Image.new("RGB", (CELL, CELL), "white")
    cell.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (GAP, GAP))
    return cell
