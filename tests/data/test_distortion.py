"""The truth of a distortion: where a figure is said to be, its image shows it."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode, rotate

from stn.data import AffineDistortion, ElasticDistortion, ProjectiveDistortion, ShapesDataModule
from stn.data.distortion import Distortion, homography
from stn.layers import Affine, Projective, ThinPlateSpline, corners_of, figure_points, pixel_centres, sample

DISTORTIONS: dict[str, Distortion] = {
    "rotation": AffineDistortion(180, (1, 1), shift=0),
    "rts": AffineDistortion(),
    "anywhere": AffineDistortion(45, (0.7, 1.2), shift=None, canvas=42),
    "affine": AffineDistortion(45, aspect=1.3, shear=0.3),
    "projective": ProjectiveDistortion(),
    "elastic": ElasticDistortion(),
    "elastic on a canvas": ElasticDistortion(canvas=48),
}


def smooth_images(count: int = 6, size: int = 32) -> Tensor:
    """Smooth random images, so that reading between pixels twice changes little, uint8."""
    coarse = torch.rand(count, 3, 5, 5)
    return F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1).mul(255).round().to(torch.uint8)


def drawn(distortion: Distortion, images: Tensor, seed: int = 0, figure: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return distortion(images, torch.Generator().manual_seed(seed), figure)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_the_spline_through_the_true_points_shows_the_image_upright(name: str) -> None:
    images = smooth_images()
    distorted, figure = drawn(DISTORTIONS[name], images)
    assert distorted.dtype == torch.uint8 and figure.shape == (6, 16, 2)
    grid = ThinPlateSpline(4)((figure - figure_points().float()).flatten(1), pixel_centres(32, 32)).unflatten(
        1, (32, 32)
    )
    upright = sample(distorted.float(), grid, padding="zeros")
    # Where the reading is inside the canvas, and not at the blurred border of the image.
    inside = ((grid.abs() < 0.95).all(dim=-1) & (pixel_centres(32, 32).abs() < 0.85).all(dim=-1).view(32, 32))[:, None]
    error = (upright - images).abs()[inside.expand_as(images)]
    # A spline is not quite a homography, and not quite the inverse of another spline.
    assert error.mean() < (12 if name == "projective" else 4), error.mean()
    assert (distorted.float() - F.interpolate(images.float(), distorted.shape[-1])).abs().mean() > 8


@pytest.mark.parametrize("name", DISTORTIONS)
def test_the_points_of_the_figure_are_read_back_in_the_image(name: str) -> None:
    distortion = DISTORTIONS[name]
    theta = distortion.draw(50, 32, torch.Generator().manual_seed(1)).double()
    if isinstance(distortion, ElasticDistortion):
        distortion.spline.double()
    placed = distortion.place(theta, figure_points(), 0.5)
    back = torch.cat([distortion.source(theta[k : k + 1], placed[k], 0.5) for k in range(50)])
    assert (back - figure_points()).abs().max() < 1e-3
    if isinstance(distortion, ElasticDistortion):
        distortion.spline.float()


def test_a_turned_image_is_that_of_torchvision() -> None:
    images = smooth_images(1)
    distorted, figure = drawn(AffineDistortion(90, (1, 1), shift=0), images)
    first, second, *_ = corners_of(figure)[0]  # of the upper side, from left to right
    side = second - first
    angle = math.degrees(math.atan2(side[1], side[0]))  # clockwise in a picture, torchvision's is not
    expected = rotate(images.float(), -angle, InterpolationMode.BILINEAR)
    inner = slice(8, 24)
    assert (distorted.float() - expected)[..., inner, inner].abs().max() < 2


def test_the_homography_maps_the_corners() -> None:
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    moved = corners + 0.2 * torch.randn(5, 4, 2)
    assert torch.allclose(Projective()(homography(corners, moved), corners), moved, atol=1e-5)


def test_corners_move_along_their_diagonal() -> None:
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    distortion = ProjectiveDistortion((0.9, 0.9), displacement=1.4, along_diagonal=True)
    moved = Projective()(distortion.draw(1000, 28, torch.Generator().manual_seed(0)), corners)
    ratio = (moved / corners)[..., 0]
    assert torch.allclose(moved, ratio[..., None] * corners, atol=1e-4)
    deviation = ((ratio - 0.9) * 14 * math.sqrt(2)).std()  # of the corners along their diagonals, in pixels
    assert abs(deviation - 1.4) < 0.1


@pytest.mark.parametrize("along_diagonal", [False, True])
def test_projective_draws_do_not_fold(along_diagonal: bool) -> None:
    distortion = ProjectiveDistortion(displacement=10, along_diagonal=along_diagonal)
    theta = distortion.draw(2000, 28, torch.Generator().manual_seed(0))
    matrix = Projective().matrix(theta)
    points = torch.cat((figure_points().float(), torch.ones(16, 1)), dim=1)
    divisors = (matrix @ points.T)[:, 2]
    assert (divisors > 0).all() and (torch.linalg.det(matrix) > 0).all()


@pytest.mark.parametrize("name", ["rts", "affine", "elastic"])
def test_undoing_the_truth_gives_the_image_back(name: str) -> None:
    images = smooth_images()
    options: dict[str, Any] = {"undo": True, "canvas": 64}
    distortion = {
        "rts": AffineDistortion(**options),
        "affine": AffineDistortion(45, aspect=1.3, shear=0.3, **options),
        "elastic": ElasticDistortion(**options),
    }[name]
    upright, figure = drawn(distortion, images)
    assert upright.shape == images.shape and torch.equal(figure[0], figure_points().float())
    assert (upright.float() - images)[..., 4:28, 4:28].abs().mean() < 4


def test_a_figure_that_is_known_moves_with_its_image() -> None:
    figure = Affine()(torch.tensor([[0.5, 0.0, 0.2, 0.0, 0.5, -0.1]]), figure_points().float())
    images = smooth_images(1)
    whole, known = drawn(AffineDistortion(), images)[1], drawn(AffineDistortion(), images, figure=figure)[1]
    corner, right, below, _ = corners_of(whole)[0]
    along, down = right - corner, below - corner
    expected = corner + (figure[0, :, :1] + 1) / 2 * along + (figure[0, :, 1:] + 1) / 2 * down
    assert torch.allclose(known[0], expected, atol=1e-5)


def test_a_border_is_what_it_is_called() -> None:
    images = torch.full((2, 3, 32, 32), 200, dtype=torch.uint8)
    corner = {
        border: drawn(AffineDistortion(0, (0.5, 0.5), shift=0, border=border), images)[0][0, :, 0, 0].tolist()
        for border in ("zeros", "border", "reflection", "texture")
    }
    assert corner["zeros"] == [0] * 3 and corner["border"] == corner["reflection"] == [200] * 3
    assert corner["texture"] not in ([0] * 3, [200] * 3)


def test_pieces_are_behind_the_image() -> None:
    images = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 3, 32, 32).contiguous() * 30 + 10
    distortion = AffineDistortion(0, (0.75, 1), shift=None, canvas=64, pieces=16, piece_size=12)
    distorted, figure = drawn(distortion, images)
    assert distorted.shape == (8, 3, 64, 64) and figure.abs().max() <= 1
    middle = ((figure.mean(dim=1) + 1) * 32).long()
    for index, (x, y) in enumerate(middle.tolist()):
        shown = distorted[index, 0]
        assert (shown[y - 8 : y + 8, x - 8 : x + 8] == images[index, 0, 0, 0]).all()
        around = set(shown.unique().tolist()) - {0, int(images[index, 0, 0, 0])}
        assert len(around) >= 2  # pieces of several others


def test_digits_do_not_hide_pieces_by_their_black_ground() -> None:
    images = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 10:18, 10:18] = 255
    distortion = AffineDistortion(0, (1, 1), shift=None, canvas=60, pieces=30, piece_size=10, opaque=False)
    distorted, figure = drawn(distortion, images)
    for index in range(4):
        left, top = ((figure[index, 0] + 1) * 30).round().long().tolist()
        assert distorted[index, 0, top : top + 28, left : left + 28].float().mean() > images[index].float().mean() + 5


def module(**options: Any) -> ShapesDataModule:
    common = {"train_images": 100, "test_images": 40, "batch_size": 20, "val_fraction": 0.2}
    data = ShapesDataModule(**(common | options))
    data.setup()
    return data


def test_training_draws_anew_and_validation_and_test_do_not() -> None:
    data, again = module(distortion=AffineDistortion()), module(distortion=AffineDistortion(), seed=5)
    for split in ("val", "test"):
        assert torch.equal(data.images[split], again.images[split])
        assert torch.equal(data.figures[split], again.figures[split])
    plain = module()
    assert not torch.equal(data.images["test"], plain.images["test"])
    assert torch.equal(data.images["train"], plain.images["train"])
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        epochs.append(list(loader))
    images, labels, figures = epochs[0][0]
    assert images.shape == (20, 3, 32, 32) and labels.shape == (20,) and figures.shape == (20, 16, 2)
    assert not torch.equal(figures, epochs[1][0][2])


def test_the_test_set_can_be_distorted_otherwise() -> None:
    upright = AffineDistortion(0, (1, 1), shift=0)
    data, plain = module(distortion=AffineDistortion(), test_distortion=upright), module()
    assert torch.equal(data.images["test"], plain.images["test"])
    assert torch.allclose(data.figures["test"], plain.figures["test"], atol=1e-6)
    assert not torch.equal(data.images["val"], plain.images["val"])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (AffineDistortion, {"rotation": 200}, "rotation must lie between 0 and 180 degrees, not 200"),
        (AffineDistortion, {"scale": (1.2, 0.7)}, "scale must be two numbers"),
        (AffineDistortion, {"shift": -1}, "shift must lie between 0 and 10, not -1"),
        (AffineDistortion, {"border": "black"}, "border must be one of zeros"),
        (AffineDistortion, {"pieces": -1}, "pieces must lie"),
        (AffineDistortion, {"canvas": 0}, "canvas must lie"),
        (AffineDistortion, {"pieces": 2, "border": "border"}, "border must be zeros or texture where there are pieces"),
        (ProjectiveDistortion, {"displacement": -1}, "displacement must lie"),
    ],
)
def test_values_out_of_range_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_a_canvas_smaller_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="canvas must be 32 or more, the side of the images, not 20"):
        ShapesDataModule(distortion=AffineDistortion(canvas=20))


def test_how_far_a_spline_may_displace_depends_on_the_side_of_the_images() -> None:
    assert ElasticDistortion(displacement=10).side(224) == 224
    with pytest.raises(
        ValueError, match=r"displacement must be 3\.6 pixels or less, a ninth of the side of the images"
    ):
        ElasticDistortion(displacement=5).side(32)


@pytest.mark.parametrize("scale", [0.1, 0.9])
def test_corners_of_small_images_are_displaced_too(scale: float) -> None:
    distortion = ProjectiveDistortion((scale, scale), displacement=0.3)
    matrix = Projective().matrix(distortion.draw(1000, 32, torch.Generator().manual_seed(0)))
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    moved = Projective()(matrix.flatten(1)[:, :8], corners) - scale * corners
    assert abs(moved.std() * 16 - 0.3) < 0.03  # pixels


def test_two_canvases_are_refused() -> None:
    with pytest.raises(ValueError, match="must have one canvas, not 64 and 32"):
        ShapesDataModule(distortion=AffineDistortion(canvas=64), test_distortion=AffineDistortion())


def test_validation_on_the_test_set_sees_its_distortion() -> None:
    data = module(distortion=AffineDistortion(canvas=40, pieces=2), validate_on="test")
    assert data.images["val"].shape == (40, 3, 40, 40) and torch.equal(data.images["val"], data.images["test"])
    assert torch.equal(data.figures["val"], data.figures["test"])


def test_the_pieces_of_a_test_set_that_is_read_class_by_class_are_of_all_classes() -> None:
    data = ShapesDataModule(distortion=AffineDistortion(0, (1, 1), shift=None, canvas=64, pieces=16, piece_size=12))
    classes = torch.arange(1100) // 550  # each more than a part
    data.images["test"] = torch.zeros(1100, 3, 32, 32, dtype=torch.uint8)
    data.images["test"][torch.arange(1100), classes] = 255
    data.fix("test")
    distorted = data.images["test"]
    of_the_other = distorted[torch.arange(1100), 1 - classes].flatten(1).gt(0).any(dim=1)
    assert of_the_other.float().mean() > 0.99
    # Each image is still in its place in the set, and where its figure is.
    x, y = ((data.figures["test"].mean(dim=1) + 1) * 32).long().unbind(1)
    assert (distorted[torch.arange(1100), classes, y, x] == 255).all()
