import numpy as np
import pytest
import torch
from PIL import Image

from stn.figures import GAP, SIDE, Reading, fitted, font, outlined, sheet, shortened, square_outline


def test_the_outline_is_the_border_of_the_square() -> None:
    points = square_outline(per_side=4)
    assert torch.equal(points[0], points[-1]) and len(points) == 17
    assert torch.equal(points.abs().amax(dim=1), torch.ones(17))
    assert torch.equal(points[:5, 1], -torch.ones(5))  # the upper side comes first


@pytest.mark.parametrize("size", [(200, 100), (3, 2), (1, 500)])
def test_an_image_of_any_shape_fits_into_its_cell(size: tuple[int, int]) -> None:
    scaled = fitted(Image.new("RGB", size), 96)
    assert max(scaled.size) == 96 and min(scaled.size) >= 1


def test_the_outline_lies_on_the_original_also_where_that_is_not_square() -> None:
    black = Image.new("RGB", (200, 100))
    cell = np.asarray(outlined(Reading(black, square_outline(), black))).astype(int)
    coloured = np.argwhere(np.ptp(cell, axis=2) > 0)
    (top, left), (bottom, right) = coloured.min(axis=0), coloured.max(axis=0)
    assert np.allclose((left, right), (GAP, GAP + SIDE), atol=2)
    assert np.allclose((top, bottom), (GAP + SIDE / 4, GAP + 3 * SIDE / 4), atol=2)


def test_the_upper_side_of_what_is_read_is_yellow() -> None:
    black = Image.new("RGB", (100, 100))
    turned = -square_outline()  # by 180 degrees: what is read stands on its head
    cell = np.asarray(outlined(Reading(black, turned, black)))
    lower = cell[GAP + SIDE - 2 : GAP + SIDE + 2, GAP + SIDE // 2]
    assert (240, 228, 66) in map(tuple, lower)


def test_the_region_that_should_be_read_is_green() -> None:
    black = Image.new("RGB", (100, 100))
    truth = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])  # the lower right quarter
    cell = np.asarray(outlined(Reading(black, None, None, truth=truth)))
    green = np.argwhere((cell == (0, 158, 115)).all(axis=2))
    assert np.allclose(green.min(axis=0), GAP + SIDE / 2, atol=2)
    assert np.allclose(green.max(axis=0), GAP + SIDE, atol=2)


def test_points_that_are_not_finite_end_nothing() -> None:
    black = Image.new("RGB", (100, 100))
    outlined(Reading(black, torch.tensor([[torch.nan, 0], [torch.inf, 1], [0, -torch.inf]]), black))


def test_a_long_caption_stays_in_its_cell_and_letters_of_other_scripts_are_drawn() -> None:
    assert shortened("cat", 100, 11) == "cat"
    cut = shortened("Rhabarberbarbara", 50, 11)
    assert cut.endswith("…") and font(11).getlength(cut) <= 50
    boxes, letters = (font(11).getmask(text).getbbox() for text in ("\uffff", "Ж"))
    assert boxes != letters


def test_a_sheet_of_nothing_is_a_title() -> None:
    assert sheet([], "title").size[1] > 0


def test_a_sheet_has_room_for_its_title_its_captions_and_only_the_rows_it_needs() -> None:
    black = Image.new("RGB", (32, 32))
    seen, unseen = (Reading(black, None, picture, "one line") for picture in (black, None))
    assert sheet([unseen]).height < sheet([seen]).height
    assert sheet([Reading(black, None, black, "two\nlines")]).height > sheet([seen]).height
    title = "a title that is longer than a picture of a single image is wide"
    assert sheet([seen], title).width >= font(12).getlength(title)
