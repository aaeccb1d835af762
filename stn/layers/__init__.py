"""The spatial transformer as a layer: localization -> warp -> sampling. Needs torch alone."""

from stn.layers.localization import ConvLocalization, FeatureLocalization
from stn.layers.pose import corners, pose_error
from stn.layers.recording import ThetaRecord, recording, thetas, transformers
from stn.layers.sampling import pixel_centres, sample
from stn.layers.transformer import NotFiniteError, Parallel, SpatialTransformer
from stn.layers.warps import (
    Affine,
    AffineExponential,
    Attention,
    BSpline,
    Diffeomorphic,
    LogPolar,
    Projective,
    Rotation,
    Similarity,
    ThinPlateSpline,
    Translation,
    Warp,
)

__all__ = [
    "Affine",
    "AffineExponential",
    "Attention",
    "BSpline",
    "ConvLocalization",
    "Diffeomorphic",
    "FeatureLocalization",
    "LogPolar",
    "NotFiniteError",
    "Parallel",
    "Projective",
    "Rotation",
    "Similarity",
    "SpatialTransformer",
    "ThetaRecord",
    "ThinPlateSpline",
    "Translation",
    "Warp",
    "corners",
    "pixel_centres",
    "pose_error",
    "recording",
    "sample",
    "thetas",
    "transformers",
]
