import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from stn.layers import pixel_centres, sample


def to_pixels(points: np.ndarray, size: int, align_corners: bool) -> np.ndarray:
    return (points + 1) / 2 * (size - 1) if align_corners else ((points + 1) * size - 1) / 2


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
def test_sampling_is_scipys(padding: str, align_corners: bool, mode: str) -> None:
    image, points = torch.rand(1, 1, 6, 9, dtype=torch.float64), torch.rand(1, 8, 11, 2, dtype=torch.float64) * 3 - 1.5
    read = sample(image, points, padding=padding, align_corners=align_corners)  # type: ignore[arg-type]
    x, y = points[0].numpy()[..., 0], points[0].numpy()[..., 1]
    where = [to_pixels(y, 6, align_corners), to_pixels(x, 9, align_corners)]
    expected = map_coordinates(image[0, 0].numpy(), where, order=1, mode=mode)
    np.testing.assert_allclose(read[0, 0].numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("align_corners", [False, True])
def test_pixel_centres_read_the_image_itself(align_corners: bool) -> None:
    image = torch.rand(2, 3, 5, 8)
    points = pixel_centres(5, 8, align_corners=align_corners).view(1, 5, 8, 2).expand(2, -1, -1, -1)
    torch.testing.assert_close(sample(image, points, align_corners=align_corners), image, atol=1e-6, rtol=1e-5)


def test_pixel_centres_go_along_the_rows() -> None:
    expected = torch.tensor([[-0.75, -0.5], [-0.25, -0.5], [0.25, -0.5], [0.75, -0.5]])
    torch.testing.assert_close(pixel_centres(2, 4)[:4], expected)


def test_channels_last_and_bfloat16_images_keep_their_dtype() -> None:
    image, points = torch.rand(2, 3, 8, 8), torch.rand(2, 4, 4, 2) * 2 - 1
    plain = sample(image, points)
    assert torch.equal(sample(image.to(memory_format=torch.channels_last), points), plain)
    half = sample(image.bfloat16(), points)
    assert half.dtype is torch.bfloat16
    torch.testing.assert_close(half.float(), plain, atol=2e-2, rtol=2e-2)


def test_unknown_padding_and_wrong_rank_are_named() -> None:
    with pytest.raises(ValueError, match="padding must be one of zeros, border, reflection, not 'wrap'"):
        sample(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, 2), padding="wrap")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"image must be \(N, C, H, W\), not \(3, 4, 4\)"):
        sample(torch.zeros(3, 4, 4), torch.zeros(1, 2, 2, 2))
