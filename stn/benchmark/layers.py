"""Every warp of a batch of images, forward and backward for θ, compared with PyTorch and kornia."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor

from stn import layers
from stn.benchmark.report import bars
from stn.benchmark.timing import interleaved, ratio
from stn.layers.warps import lattice_points

SIZES = ((256, 3, 32, 32), (64, 3, 224, 224))
FAMILIES = (
    layers.Affine,
    layers.Projective,
    layers.ThinPlateSpline,
    layers.Translation,
    layers.Rotation,
    layers.Attention,
    layers.Similarity,
    layers.AffineExponential,
    layers.BSpline,
    layers.Diffeomorphic,
    layers.LogPolar,
)

Arm = Callable[[], object]


def measure(rounds: int, device: torch.device, _: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each warp, size and peer: milliseconds of this project and of the peer, and their ratio.

    The peer "copy" copies the images twice. That is the memory traffic of a sampler that touches each pixel once. So
    its ratio is the share of the bandwidth that is reached.
    """
    if not find_spec("kornia"):  # only the tests and this benchmark need it
        print("kornia is not installed: nothing is measured beside it")
    for shape in SIZES:
        images = torch.rand(shape, device=device)
        for family in FAMILIES:
            warp = family().to(device)
            arms = {"stn": forward_and_backward(*ours(warp, images)), "copy": copies(images)}
            arms |= {name: forward_and_backward(*peer) for name, peer in peers(warp, images).items()}
            seconds = interleaved(arms, rounds, device)
            for peer in arms:
                if peer != "stn":
                    times, low, high = ratio(seconds[peer], seconds["stn"])
                    yield {
                        "warp": family.__name__,
                        "images": "×".join(map(str, shape)),
                        "stn (ms)": median(seconds["stn"]) * 1000,
                        "peer": peer,
                        "peer (ms)": median(seconds[peer]) * 1000,
                        "peer / stn": times,
                        "quartiles": [low, high],
                    }


def near_identity(warp: layers.Warp, count: int, device: torch.device) -> Tensor:
    """θ (count, P) of warps that move points by a few pixels."""
    generator = torch.Generator().manual_seed(0)
    return (warp.identity() + 0.1 * torch.randn(count, warp.num_params, generator=generator)).to(device)


def ours(warp: layers.Warp, images: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """This project's function from θ to the warped images, and θ."""
    localization = torch.nn.Linear(1, 1)  # never looks: θ is given
    transformer = layers.SpatialTransformer(localization, warp, padding="zeros")
    return lambda theta: transformer.transform(images, theta), near_identity(warp, len(images), images.device)


def peers(warp: layers.Warp, images: Tensor) -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """Functions of other libraries for the same warp, by name: from their parameters to the images, and parameters."""
    count, size = len(images), (images.shape[2], images.shape[3])
    theta = near_identity(warp, count, images.device)

    def affine_grid(theta: Tensor) -> Tensor:
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)

    found: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {}
    if isinstance(warp, layers.Affine):
        found["torch affine_grid + grid_sample"] = affine_grid, theta.view(-1, 2, 3)
        # The part of the warp that PyTorch computes.
        grid = F.affine_grid(theta.view(-1, 2, 3), list(images.shape), align_corners=False)
        found["torch grid_sample alone"] = lambda grid: F.grid_sample(images, grid, align_corners=False), grid
    try:
        import kornia.geometry.transform as kornia
    except ImportError:
        return found

    if isinstance(warp, layers.Affine):
        # In pixels, and from the input to the output.
        half = torch.tensor(size[::-1]).to(images) / 2
        pixels = torch.eye(3).to(images)
        pixels[:2, 2] = half - 0.5
        pixels[0, 0], pixels[1, 1] = half
        matrix = (pixels @ warp.matrix(theta) @ pixels.inverse()).inverse()[:, :2]
        found["kornia warp_affine"] = lambda m: kornia.warp_affine(images, m, size, align_corners=False), matrix
    elif isinstance(warp, layers.Projective):
        found["kornia homography_warp"] = lambda h: kornia.homography_warp(images, h, size), warp.matrix(theta)
    elif isinstance(warp, layers.ThinPlateSpline):
        lattice = lattice_points(warp.size).to(images).expand(count, -1, -1)

        def thin_plate_spline(moved: Tensor) -> Tensor:
            kernels, affine = kornia.get_tps_transform(lattice, moved)
            return kornia.warp_image_tps(images, moved, kernels, affine)

        found["kornia warp_image_tps"] = thin_plate_spline, lattice + theta.view(count, -1, 2)
    return found


def forward_and_backward(warped: Callable[[Tensor], Tensor], theta: Tensor) -> Arm:
    """A call that warps, and computes the gradient for `theta`."""
    theta = theta.detach().requires_grad_()
    gradient = torch.rand_like(warped(theta).detach())
    return lambda: torch.autograd.grad(warped(theta), theta, gradient)


def copies(images: Tensor) -> Arm:
    """A call that reads and writes `images` twice."""
    target = torch.empty_like(images)
    return lambda: (target.copy_(images), target.copy_(images))


def draw(rows: list[dict[str, Any]], axes: Axes) -> None:
    """Milliseconds of each warp and its peers, as bars."""
    shape = rows[-1]["images"]
    found: dict[str, float] = {}
    for row in rows:
        if row["images"] == shape:
            found[row["warp"]] = row["stn (ms)"]
            if row["peer"] != "copy":
                found[f"{row['warp']}: {row['peer']}"] = row["peer (ms)"]
    bars(axes, found, peers=[name for name in found if ":" in name])
    axes.set(xscale="log", xlabel=f"ms, forward and backward, {shape}")
