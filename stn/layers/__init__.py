"""The spatial transformer as a layer: localization -> warp -> sampling. Needs torch alone."""

from stn.layers.localization import ConvLocalization
from stn.layers.sampling import pixel_centres, sample
from stn.layers.transformer import SpatialTransformer, thetas, transformers
from stn.layers.warps import Affine

__all__ = ["Affine", "ConvLocalization", "SpatialTransformer", "pixel_centres", "sample", "thetas", "transformers"]
