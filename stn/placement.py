"""Puts spatial transformers into a classifier."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from stn.layers import FeatureLocalization, Parallel, SpatialTransformer, Warp

Placement = Literal["none", "input", "features", "deep", "parallel", "shared"]


def build_network(
    classifier: Callable[..., nn.Sequential],
    localization: Callable[..., nn.Module],
    warp: Warp,
    transformer: Callable[..., SpatialTransformer],
    placement: Placement = "input",
    *,
    in_channels: int = 3,
    image_size: int = 32,
    num_classes: int = 10,
) -> nn.Sequential:
    """A classifier of images (N, in_channels, image_size, image_size) with spatial transformers among its stages.

    classifier: is called with in_channels, image_size and num_classes, and returns the classifier. Its first two
        children are its stages.
    localization: is called with in_channels and image_size, and returns the localization of a transformer on the image.
        A transformer on a feature map has a `FeatureLocalization` instead.
    transformer: is called with a localization and `warp`, and returns the transformer.
    placement: where the transformers are.
        none: nowhere.
        input: on the image.
        features: on the first stage's feature map.
        deep: on the image, and after the first and the second stage.
        parallel: two on the image, their outputs joined as channels.
        shared: on the image, but with θ regressed from the classifier's own first stage (Finnveden et al. 2020,
            "Understanding when spatial transformer networks do not support invariance, and what to do about it").
    Raises ValueError for an unknown placement, or if the parts do not fit together.
    """
    if placement not in get_args(Placement):
        raise ValueError(f"placement must be one of {', '.join(get_args(Placement))}, not {placement!r}")
    shape = (in_channels, image_size, image_size)

    def on_image() -> SpatialTransformer:
        return transformer(localization(in_channels=in_channels, image_size=image_size), warp)

    def classifier_of(channels: int, size: int) -> nn.Sequential:
        return classifier(in_channels=channels, image_size=size, num_classes=num_classes)

    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if placement in ("input", "deep"):
        parts["transformer"] = on_image()
    elif placement == "parallel":
        parts["transformer"] = Parallel([on_image(), on_image()])
    channels, height, _ = output_shape(nn.Sequential(parts), shape)
    stages = list(classifier_of(channels, height))

    def map_channels(stage: nn.Sequential) -> int:
        """The channels of a stage's feature map."""
        found = output_shape(stage, shape)
        if len(found) != 3:
            raise ValueError(f"placement {placement} needs a classifier with feature maps, such as ConvNet")
        return found[0]

    if placement == "shared":
        localization_of_stage = SharedLocalization(stages[0], map_channels(nn.Sequential(stages[0])))
        parts["transformer"] = transformer(localization_of_stage, warp)
    for depth in range({"features": 1, "deep": 2}.get(placement, 0)):
        parts[f"stage_{depth + 1}"] = stages.pop(0)
        features = FeatureLocalization(map_channels(nn.Sequential(parts)))
        parts[f"transformer_{depth + 1}"] = transformer(features, warp)
    parts["classifier"] = nn.Sequential(*stages)
    network = nn.Sequential(parts)
    output_shape(network, shape)
    return network


class SharedLocalization(nn.Sequential):
    """A localization whose first part is a stage of the classifier; both use the same weights."""

    def __init__(self, stage: nn.Module, channels: int) -> None:
        own = FeatureLocalization(channels)
        super().__init__(stage, own)
        self.out_features = own.out_features


@torch.no_grad()
def output_shape(network: nn.Sequential, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a network's output for one image of `shape` (C, H, W), without the batch.

    Raises ValueError if the network cannot process such an image.
    """
    try:
        output: Tensor = network.eval()(torch.zeros(1, *shape))
    except RuntimeError as error:
        raise ValueError(f"the parts of the network do not fit together: {error}") from error
    finally:
        network.train()
    return tuple(output.shape[1:])
