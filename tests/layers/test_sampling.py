from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates

from stn.layers import pixel_centres, sample
from stn.layers.sampling import Border, Mode

MODES: list[Mode] = ["nearest", "bilinear", "bicubic"]
BORDERS: list[Border] = ["zeros", "border", "reflection"]


def to_pixels(points: np.ndarray, size: int, align_corners: bool) -> np.ndarray:
    return (points + 1) / 2 * (size - 1) if align_corners else ((points + 1) * size - 1) / 2


def image_and_points(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """An image that is not square, and points of which many lie outside it."""
    image = torch.rand(count, 3, 6, 9, dtype=torch.float64)
    return image, torch.rand(count, 8, 5, 2, dtype=torch.float64) * 5 - 2.5


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize(
    ("padding", "align_corners", "mode"),
    [
        ("border", False, "nearest"),
        ("border", True, "nearest"),
        ("zeros", False, "grid-constant"),
        ("zeros", True, "grid-constant"),
        ("reflection", False, "reflect"),
        ("reflection", True, "mirror"),
    ],
)
def test_sampling_is_scipys(padding: Border, align_corners: bool, mode: str, gather: bool) -> None:
    image, points = image_and_points(1)
    read = sample(image, points, padding=padding, align_corners=align_corners, gather=gather)
    x, y = points[0].numpy()[..., 0], points[0].numpy()[..., 1]
    where = [to_pixels(y, 6, align_corners), to_pixels(x, 9, align_corners)]
    for channel in range(3):
        expected = map_coordinates(image[0, channel].numpy(), where, order=1, mode=mode)
        np.testing.assert_allclose(read[0, channel].numpy(), expected, atol=1e-10)


@pytest.mark.parametrize(("mode", "padding", "align_corners"), product(MODES, BORDERS, [False, True]))
def test_gathering_is_grid_sample_with_its_gradients(mode: Mode, padding: Border, align_corners: bool) -> None:
    results = []
    for gather in (False, True):
        torch.manual_seed(0)
        image, points = (tensor.requires_grad_() for tensor in image_and_points())
        read = sample(image, points, mode=mode, padding=padding, align_corners=align_corners, gather=gather)
        (read * torch.rand_like(read)).sum().backward()
        gradient = torch.zeros_like(points) if points.grad is None else points.grad
        results.append((read.detach(), image.grad, gradient))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_gradients_of_image_and_points_are_those_of_finite_differences(mode: Mode) -> None:
    image, points = (tensor[:1, :2].clone().requires_grad_() for tensor in image_and_points())
    for gather in (False, True):
        assert torch.autograd.gradcheck(lambda i, p, g=gather: sample(i, p, mode=mode, gather=g), (image, points))
    assert torch.autograd.gradgradcheck(lambda i, p: sample(i, p, mode=mode, gather=True), (image, points))


@pytest.mark.parametrize(("mode", "gather"), product(MODES, [False, True]))
def test_each_channel_can_have_its_own_colour_beyond_the_border(mode: Mode, gather: bool) -> None:
    image, points = image_and_points()
    fill = [3.0, -1.0, 0.5]
    read = sample(image, points, mode=mode, padding=fill, gather=gather)
    surrounded = torch.tensor(fill, dtype=image.dtype).view(1, 3, 1, 1).expand(2, 3, 46, 49).clone()
    surrounded[:, :, 20:26, 20:29] = image
    where = points * torch.tensor([9 / 49, 6 / 46])
    torch.testing.assert_close(read, F.grid_sample(surrounded, where, mode=mode, align_corners=False))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_pixel_centres_read_the_image_itself(mode: Mode, align_corners: bool) -> None:
    image = torch.rand(2, 3, 5, 8)
    points = pixel_centres(5, 8, align_corners=align_corners).view(1, 5, 8, 2).expand(2, -1, -1, -1)
    torch.testing.assert_close(sample(image, points, mode=mode, align_corners=align_corners), image, atol=2e-6, rtol=0)


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_shift_by_whole_pixels_moves_the_image(align_corners: bool) -> None:
    image = torch.rand(1, 1, 7, 9)
    pitch = torch.tensor([2 / 8, 2 / 6] if align_corners else [2 / 9, 2 / 7])
    points = pixel_centres(7, 9, align_corners=align_corners) + torch.tensor([2, 1]) * pitch
    read = sample(image, points.view(1, 7, 9, 2), padding="zeros", align_corners=align_corners)
    torch.testing.assert_close(read[:, :, :-1, :-2], image[:, :, 1:, 2:], atol=1e-5, rtol=0)


def test_pixel_centres_go_along_the_rows() -> None:
    expected = torch.tensor([[-0.75, -0.5], [-0.25, -0.5], [0.25, -0.5], [0.75, -0.5]])
    torch.testing.assert_close(pixel_centres(2, 4)[:4], expected)


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_parts_of_a_pixel_lie_evenly_around_its_centre(align_corners: bool) -> None:
    centres = pixel_centres(3, 5, align_corners=align_corners).view(3, 5, 2)
    parts = pixel_centres(3, 5, align_corners=align_corners, supersample=4).view(3, 4, 5, 4, 2)
    torch.testing.assert_close(parts.mean(dim=(1, 3)), centres)
    across = parts[:, 0, :, :, 0].flatten(1)
    torch.testing.assert_close(across.diff(dim=1), across[:, 1:2].sub(across[:, :1]).expand(3, 19))


def test_channels_last_and_bfloat16_images_keep_their_dtype() -> None:
    image, points = torch.rand(2, 3, 8, 8), torch.rand(2, 4, 4, 2) * 2 - 1
    plain = sample(image, points)
    assert torch.equal(sample(image.to(memory_format=torch.channels_last), points), plain)
    half = sample(image.bfloat16(), points)
    assert half.dtype is torch.bfloat16
    torch.testing.assert_close(half.float(), plain, atol=2e-2, rtol=2e-2)


NOT_FINITE = [torch.nan, torch.inf, -torch.inf, 1e30, -3e38]


@pytest.mark.parametrize(("mode", "padding", "gather"), [*product(MODES, BORDERS, [False, True])])
@pytest.mark.parametrize("bad", NOT_FINITE)
def test_points_that_are_not_finite_do_no_harm(mode: Mode, padding: Border, gather: bool, bad: float) -> None:
    """They ended the process. NaN reads the middle, and the rest a place far away; none has a gradient."""
    image, points = torch.rand(8, 3, 32, 32, requires_grad=True), torch.rand(8, 32, 32, 2) * 2 - 1
    points[2:4] = bad
    points[5, ::3, :, 1] = bad
    points.requires_grad_()
    read = sample(image, points, mode=mode, padding=padding, gather=gather)
    of_image, of_points = torch.autograd.grad(read.square().sum(), (image, points), materialize_grads=True)
    assert all(tensor.isfinite().all() for tensor in (read, of_image, of_points))
    assert of_points[2:4].count_nonzero() == of_points[5, ::3, :, 1].count_nonzero() == 0
    with torch.no_grad():
        known = points.nan_to_num(0, 1e4, -1e4).clamp(-1e4, 1e4)
        assert torch.equal(sample(image, known, mode=mode, padding=padding, gather=gather), read)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("padding", BORDERS)
def test_the_second_derivative_at_points_that_are_not_finite_is_finite(mode: Mode, padding: Border) -> None:
    image, points = (tensor.requires_grad_() for tensor in image_and_points())
    with torch.no_grad():
        points[0, 0] = torch.tensor(NOT_FINITE)[:, None]
    read = sample(image, points, mode=mode, padding=padding, gather=True)
    first = torch.autograd.grad(read.square().sum(), (image, points), create_graph=True)
    second = torch.autograd.grad(sum(one.square().sum() for one in first), (image, points))
    assert all(tensor.isfinite().all() for tensor in (*first, *second))


def test_no_points_read_nothing() -> None:
    assert sample(torch.rand(2, 3, 8, 8), torch.rand(2, 0, 4, 2)).shape == (2, 3, 0, 4)


def test_what_cannot_be_sampled_is_named() -> None:
    image, points = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    with pytest.raises(ValueError, match=r"padding must be one of zeros, border, reflection, or a number.*not 'wrap'"):
        sample(image, points, padding="wrap")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"padding must be 2 numbers, one for each channel, not \[1.0\]"):
        sample(image, points, padding=[1.0])
    with pytest.raises(ValueError, match="mode must be one of nearest, bilinear, bicubic, not 'cubic'"):
        sample(image, points, mode="cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"image must be \(N, C, H, W\), not \(3, 4, 4\)"):
        sample(torch.zeros(3, 4, 4), points)
    with pytest.raises(ValueError, match="height, width and supersample must be 1 or more, not 0, 3 and 1"):
        pixel_centres(0, 3)
