"""Spatial transformer networks (Jaderberg et al. 2015): the layer, the networks and the experiment.

The public names are imported on first use, so that `import stn` is instant and the layer needs torch alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from stn.layers import (
        Affine,
        AffineExponential,
        Attention,
        BSpline,
        ConvLocalization,
        Diffeomorphic,
        FeatureLocalization,
        FullyConnectedLocalization,
        KeypointLocalization,
        LogPolar,
        Parallel,
        PoseLocalization,
        Projective,
        Rotation,
        RotationClasses,
        Similarity,
        SpatialTransformer,
        ThinPlateSpline,
        Translation,
        Warp,
        pixel_centres,
        pose_error,
        recording,
        sample,
        thetas,
        transformers,
    )
    from stn.networks import ConvNet, LeNet5, WideConvNet
    from stn.run import Run

__all__ = [
    "Affine",
    "AffineExponential",
    "Attention",
    "BSpline",
    "ConvLocalization",
    "ConvNet",
    "Diffeomorphic",
    "FeatureLocalization",
    "FullyConnectedLocalization",
    "KeypointLocalization",
    "LeNet5",
    "LogPolar",
    "Parallel",
    "PoseLocalization",
    "Projective",
    "Rotation",
    "RotationClasses",
    "Run",
    "Similarity",
    "SpatialTransformer",
    "ThinPlateSpline",
    "Translation",
    "Warp",
    "WideConvNet",
    "pixel_centres",
    "pose_error",
    "recording",
    "sample",
    "thetas",
    "transformers",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        metadata = import_module("importlib.metadata")
        try:
            return metadata.version("stn-experiments")
        except metadata.PackageNotFoundError:  # a checkout on the path, not installed
            return "0+unknown"
    if name not in __all__:
        raise AttributeError(f"module 'stn' has no attribute {name!r}")
    homes = {"ConvNet": "stn.networks", "LeNet5": "stn.networks", "WideConvNet": "stn.networks", "Run": "stn.run"}
    return getattr(import_module(homes.get(name, "stn.layers")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
