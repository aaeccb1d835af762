"""Writes what TensorBoard's tab PROJECTOR reads: vectors, their labels, and their images side by side."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tensorboard.plugins.projector import ProjectorConfig
from torch import Tensor

from stn.figures import fitted, to_picture

THUMBNAIL = 32  # pixels


class Embedding(NamedTuple):
    """Vectors (N, D) with a name, and of each the image (C, H, W) uint8, the class and the class that was predicted."""

    name: str
    vectors: Tensor
    images: Tensor
    rows: Sequence[tuple[str, str]]


def write_projector(folder: Path, embeddings: Sequence[Embedding]) -> None:
    """Writes `folder`/projector_config.pbtxt, in place of the one before, and the files that it names."""
    config = ProjectorConfig()
    shutil.rmtree(folder / "projector", ignore_errors=True)
    for number, embedding in enumerate(embeddings):
        within = Path("projector", str(number))
        (folder / within).mkdir(parents=True)
        np.savetxt(folder / within / "vectors.tsv", embedding.vectors.float().cpu().numpy(), "%.4g", "\t")
        lines = ["class\tpredicted", *("\t".join(" ".join(name.split()) for name in row) for row in embedding.rows)]
        (folder / within / "labels.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        sprite(embedding.images).save(folder / within / "sprite.png")
        entry = config.embeddings.add(tensor_name=embedding.name, tensor_path=str(within / "vectors.tsv"))
        entry.metadata_path = str(within / "labels.tsv")
        entry.sprite.image_path = str(within / "sprite.png")
        entry.sprite.single_image_dim.extend([THUMBNAIL, THUMBNAIL])
    (folder / "projector_config.pbtxt").write_text(str(config), encoding="utf-8")


def sprite(images: Tensor) -> Image.Image:
    """Thumbnails of images (N, C, H, W) uint8 in a square, row by row, as TensorBoard cuts them out again."""
    columns = math.ceil(math.sqrt(len(images)))
    canvas = Image.new("RGB", (columns * THUMBNAIL, columns * THUMBNAIL))
    for index, image in enumerate(images):
        canvas.paste(fitted(to_picture(image), THUMBNAIL), (index % columns * THUMBNAIL, index // columns * THUMBNAIL))
    return canvas
