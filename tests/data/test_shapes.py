from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stn.data import ShapesDataModule
from stn.data.shapes import FIGURES, draw_figures, draw_shapes, random_poses
from stn.layers import Affine, ConvLocalization, SpatialTransformer, corners_of


def test_the_known_pose_shows_the_figure_upright_and_full_size() -> None:
    """A transformer given the pose as θ finds the upright figure in every image."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(50) % 10
    poses = random_poses(50, rotation=180, scale=(0.6, 0.9), generator=generator)
    images = draw_shapes(labels, poses, 64, generator)
    seen = SpatialTransformer(ConvLocalization(image_size=64)).transform(images.float(), poses)
    figure = F.avg_pool2d(draw_figures(256), 4)[labels]
    # Where the figure is, its saturated colour; where not, the muted ground: the two are far apart.
    saturation = seen.amax(dim=1, keepdim=True) - seen.amin(dim=1, keepdim=True)
    inside = (saturation * (figure > 0.99)).sum(dim=(1, 2, 3)) / (figure > 0.99).sum(dim=(1, 2, 3))
    outside = (saturation * (figure < 0.01)).sum(dim=(1, 2, 3)) / (figure < 0.01).sum(dim=(1, 2, 3))
    assert inside.min() > 190 and outside.max() < 130


@pytest.mark.parametrize("validate_on", ["held_out", "test"])
def test_the_corners_of_every_split_are_those_of_its_images(validate_on: Any) -> None:
    """The saturated pixels, which only a figure has, lie within the corners of its square."""
    data = ShapesDataModule(40, 20, val_fraction=0.5, validate_on=validate_on, image_size=64, batch_size=10)
    data.setup()
    assert {split: len(figures) for split, figures in data.figures.items()} == {
        split: len(images) for split, images in data.images.items()
    }
    for split, images in data.images.items():
        saturation = images.float().amax(dim=1) - images.float().amin(dim=1)
        for corners, mask in zip(corners_of(data.figures[split]).double(), saturation > 220, strict=True):
            y, x = ((mask.nonzero() + 0.5) / 32 - 1).unbind(1)
            # In the figure's own frame, whose axes go from the first corner to the second and to the third.
            along = torch.linalg.solve(
                torch.stack((corners[1] - corners[0], corners[2] - corners[0]), dim=1),
                torch.stack((x, y)).double() - corners[0][:, None],
            )
            within = ((along > -0.05) & (along < 1.05)).all(dim=0)
            assert len(x) > 20 and within.float().mean() > 0.95  # a pixel of the ground may be as bright


def test_poses_fill_the_range_asked_for_and_keep_the_figure_inside() -> None:
    poses = random_poses(2000, rotation=30, scale=(0.4, 0.8), generator=torch.Generator().manual_seed(2))
    parts = Affine().decompose(poses)
    assert 29 < parts["rotation"].rad2deg().abs().max() <= 30 + 1e-4
    assert 0.4 - 1e-6 <= parts["scale"].min() < 0.41 and 0.79 < parts["scale"].max() <= 0.8 + 1e-6
    assert (parts["shift_x"].abs() + parts["scale"] <= 1 + 1e-6).all()
    assert (parts["shift_y"].abs() + parts["scale"] <= 1 + 1e-6).all()


def test_ten_classes_as_many_of_each_and_the_same_every_time() -> None:
    first, again, other = (ShapesDataModule(train_images=40, test_images=20, split_seed=seed) for seed in (0, 0, 1))
    images, labels = first.read(train=True)
    assert images.shape == (40, 3, 32, 32) and images.dtype is torch.uint8
    assert labels.bincount().tolist() == [4] * 10 and first.classes == tuple(FIGURES)
    assert torch.equal(images, again.read(train=True)[0])
    assert not torch.equal(images, other.read(train=True)[0])
    assert not torch.equal(images[:20], first.read(train=False)[0])
    assert first.poses["train"].shape == (40, 6) and first.poses["test"].shape == (20, 6)


def test_figures_differ_from_each_other_at_every_quarter_turn() -> None:
    upright = draw_figures(64) > 0.5
    for first in range(10):
        for second in range(first):
            for turns in range(4):
                turned = upright[second].rot90(turns, dims=(1, 2))
                assert (upright[first] ^ turned).float().mean() > 0.08


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train_images": 1}, "train_images 1 and test_images 2000 must be 2 and 1 or more"),
        ({"min_scale": 0.9}, "0 < min_scale <= max_scale <= 1 must hold, not 0.9 and 0.8"),
        ({"rotation": 200.0}, "rotation must lie between 0 and 180 degrees, not 200.0"),
    ],
)
def test_values_out_of_range_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ShapesDataModule(**options)
