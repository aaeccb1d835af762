"""What all callbacks that draw share."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

log = logging.getLogger(__name__)


@contextmanager
def drawing(what: str) -> Iterator[None]:
    """Warns of a picture that cannot be drawn or saved, since a picture never ends a training."""
    try:
        yield
    except (OSError, ValueError, MemoryError, RuntimeError) as error:
        log.warning("%s could not be drawn: %s", what, error)


def log_picture(loggers: Sequence[Logger], name: str, picture: Image.Image, step: int) -> None:
    """Gives a picture to the loggers that take pictures: TensorBoard, Weights & Biases and MLflow."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [picture], step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, picture, key=name.replace("/", "_"), step=step)
