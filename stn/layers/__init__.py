"""The spatial transformer as a layer: localization -> warp -> sampling. Needs torch alone."""

from stn.layers.localization import (
    ConvLocalization,
    FeatureLocalization,
    FullyConnectedLocalization,
    KeypointLocalization,
    PoseLocalization,
)
from stn.layers.pose import corners, corners_of, distance_to_truth, figure_points, pose_error, share_left
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
    RotationClasses,
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
    "FullyConnectedLocalization",
    "KeypointLocalization",
    "LogPolar",
    "NotFiniteError",
    "Parallel",
    "PoseLocalization",
    "Projective",
    "Rotation",
    "RotationClasses",
    "Similarity",
    "SpatialTransformer",
    "ThetaRecord",
    "ThinPlateSpline",
    "Translation",
    "Warp",
    "corners",
    "corners_of",
    "distance_to_truth",
    "figure_points",
    "pixel_centres",
    "pose_error",
    "recording",
    "sample",
    "share_left",
    "thetas",
    "transformers",
]
