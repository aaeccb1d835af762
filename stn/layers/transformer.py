"""The spatial transformer (Jaderberg et al. 2015, section 3)."""

import torch
from torch import Tensor, nn

from stn.layers.sampling import Padding, check_padding, pixel_centres, sample
from stn.layers.warps import Affine


class SpatialTransformer(nn.Module):
    """Localization -> warp -> sampling: an image or feature map (N, C, H, W) read where the localization says.

    `localization` maps the image to features (N, F) and has F as `out_features` (as `nn.Linear` has); the last,
    linear layer from F to θ is the transformer's own. It starts with zero weights and the identity as bias, so a
    new transformer changes nothing. `warp` is affine unless given. θ, the points and the sampling are float32
    under any autocast. See `sample` for `padding`.
    """

    def __init__(
        self,
        localization: nn.Module,
        warp: Affine | None = None,
        *,
        padding: Padding = "border",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        check_padding(padding)
        features = getattr(localization, "out_features", None)
        if not isinstance(features, int):
            raise ValueError(
                f"the localization {type(localization).__name__} needs an attribute out_features, the length of the "
                "feature vector it gives"
            )
        self.localization = localization
        self.warp = Affine() if warp is None else warp
        self.head = nn.Linear(features, self.warp.num_params)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(self.warp.identity())
        self.padding: Padding = padding
        self.align_corners = align_corners

    def theta(self, image: Tensor) -> Tensor:
        """θ (N, P) for images (N, C, H, W)."""
        features = self.localization(image)
        with torch.autocast(image.device.type, enabled=False):
            return self.head(features.to(self.head.weight.dtype))

    def grid(self, theta: Tensor, height: int, width: int) -> Tensor:
        """Where in the input each pixel of a height x width output is read: (N, height, width, 2), (x, y)."""
        with torch.autocast(theta.device.type, enabled=False):
            centres = pixel_centres(height, width, align_corners=self.align_corners, device=theta.device)
            return self.warp(theta, centres.to(theta.dtype)).view(-1, height, width, 2)

    def transform(self, image: Tensor, theta: Tensor) -> Tensor:
        """`image` (N, C, H, W) warped by a given θ (N, P)."""
        grid = self.grid(theta, image.shape[2], image.shape[3])
        return sample(image, grid, padding=self.padding, align_corners=self.align_corners)

    def forward(self, image: Tensor) -> Tensor:
        """The warped image, (N, C, H, W)."""
        if image.ndim != 4:
            raise ValueError(f"a spatial transformer takes (N, C, H, W), not {tuple(image.shape)}")
        return self.transform(image, self.theta(image))

    def extra_repr(self) -> str:
        return f"padding={self.padding!r}, align_corners={self.align_corners}"


def transformers(network: nn.Module) -> dict[str, SpatialTransformer]:
    """Every spatial transformer in a network by its name, in order."""
    return {name: module for name, module in network.named_modules() if isinstance(module, SpatialTransformer)}


@torch.no_grad()
def thetas(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """θ (N, P) of every transformer in a network, by the transformer's name, for a batch of images (N, C, H, W)."""
    found: dict[str, Tensor] = {}
    hooks = [
        module.head.register_forward_hook(lambda head, features, theta, name=name: found.update({name: theta}))
        for name, module in transformers(network).items()
    ]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found
