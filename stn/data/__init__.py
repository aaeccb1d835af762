"""DataModules whose images live in memory, and the batches they yield."""

from stn.data.distortion import AffineDistortion, ElasticDistortion, ProjectiveDistortion
from stn.data.image_folder import ImageFolderDataModule
from stn.data.shapes import ShapesDataModule
from stn.data.torchvision_sets import CIFAR10DataModule, MNISTDataModule

__all__ = [
    "AffineDistortion",
    "CIFAR10DataModule",
    "ElasticDistortion",
    "ImageFolderDataModule",
    "MNISTDataModule",
    "ProjectiveDistortion",
    "ShapesDataModule",
]
