"""DataModules whose images live in memory, and the batches they yield."""

from stn.data.cifar10 import CIFAR10DataModule
from stn.data.image_folder import ImageFolderDataModule
from stn.data.shapes import ShapesDataModule

__all__ = ["CIFAR10DataModule", "ImageFolderDataModule", "ShapesDataModule"]
