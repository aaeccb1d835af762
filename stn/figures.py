"""Pictures in one style: what a transformer reads of images, and plots."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import TypeVar

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator, PercentFormatter
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from stn.layers import SpatialTransformer
from stn.networks import Normalization

Item = TypeVar("Item")

# Okabe and Ito's colours, which the colour-blind tell apart, and which differ in print too.
BLUE, VERMILION, YELLOW, GREEN, GREY = "#0072B2", "#D55E00", "#F0E442", "#009E73", "#777777"

# In pixels of the picture.
SIDE = 96  # of an image
GAP = 16  # around an image, for outlines that leave it
CELL = SIDE + 2 * GAP
MARGIN = 64
TOP = 20
LINE = 14  # of a caption below the first
COLUMNS = 10

MOST_COUNTS = 20  # classes up to which the confusion shows numbers
MOST_NAMES = 60  # classes up to which it shows their names
LONGEST_NAME = 120  # pixels in a font of 10


@dataclass(frozen=True)
class Reading:
    """What a transformer reads of an image.

    image: the original. outline: the border of the region that is read, (K, 2), (x, y) in [-1, 1] from edge to edge,
    clockwise from the upper left corner of what is read, the upper side first; or None. seen: what is read, None
    without a transformer. caption: lines above. right: whether the first one is right, None if that is unknown.
    truth: the border of the region that should be read, (K, 2), or None.
    """

    image: Image.Image
    outline: Tensor | None
    seen: Image.Image | None
    caption: str = ""
    right: bool | None = None
    truth: Tensor | None = None


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans, which comes with matplotlib and has Latin, Greek, Cyrillic and Arabic letters."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def square_outline(per_side: int = 24) -> Tensor:
    """Points along the border of the square [-1, 1], clockwise and closed: (4 per_side + 1, 2)."""
    along = torch.linspace(-1, 1, per_side + 1)[:-1]
    one = torch.ones_like(along)
    sides = [(along, -one), (one, along), (-along, one), (-one, -along)]
    points = torch.cat([torch.stack(side, dim=1) for side in sides])
    return torch.cat((points, points[:1]))


@torch.no_grad()
def outlines(transformer: SpatialTransformer, theta: Tensor, height: int, width: int) -> Tensor:
    """The borders of the regions that θ (N, P) reads in images of height x width pixels, see `Reading`: (N, K, 2)."""
    found = transformer.to_input(theta, square_outline().to(theta))
    if transformer.align_corners:  # there ±1 is the centre of the outermost pixel, not its edge
        found = found * torch.tensor([1 - 1 / width, 1 - 1 / height]).to(found)
    return found.cpu()


@torch.no_grad()
def read_pixels(transformer: SpatialTransformer, normalization: Normalization, theta: Tensor, images: Tensor) -> Tensor:
    """What a transformer reads with θ (N, P) of images (N, C, H, W) uint8: pixels (N, C, h, w) uint8.

    It reads normalized images, so zeros beyond the border are the mean colour.
    """
    read = normalization.undo(transformer.transform(normalization(images), theta))
    return (read * 255).round().clamp(0, 255).byte()


@torch.no_grad()
def readings(
    transformer: SpatialTransformer,
    normalization: Normalization,
    theta: Tensor,
    images: Tensor,
    captions: Sequence[str],
    right: Sequence[bool | None] | None = None,
    boxes: Tensor | None = None,
) -> list[Reading]:
    """What a transformer reads with θ (N, P) of images (N, C, H, W) uint8, as pictures.

    boxes (N, 4): (left, top, right, bottom) in [-1, 1], that should be read.
    """
    warped = read_pixels(transformer, normalization, theta, images)
    borders = outlines(transformer, theta, *images.shape[-2:])
    unknown: list[None] = [None] * len(captions)
    corners = torch.tensor([[0, 1], [2, 1], [2, 3], [0, 3], [0, 1]])
    truths = unknown if boxes is None else list(boxes.cpu()[:, corners])
    return [
        Reading(to_picture(image), border, to_picture(seen), caption, known, truth)
        for image, border, seen, caption, known, truth in zip(
            images, borders, warped, captions, right or unknown, truths, strict=True
        )
    ]


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of some items, 2 or more, as evenly as possible, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def to_picture(image: Tensor) -> Image.Image:
    """An image (C, H, W) uint8 as RGB.

    With one or two channels the first is shown in grey, otherwise the first three as red, green and blue.
    """
    shown = image[:3] if len(image) > 2 else image[:1].expand(3, -1, -1)
    return Image.fromarray(shown.permute(1, 2, 0).cpu().contiguous().numpy())


def fitted(image: Image.Image, side: int) -> Image.Image:
    """An image scaled to fit into a square of `side` pixels; small ones keep their pixels as squares."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)


def outlined(reading: Reading, side: int = SIDE, gap: int = GAP) -> Image.Image:
    """The original in a square of side + 2 gap pixels, with the outline of the region; its upper side is yellow.

    The border of the region that should be read is green.
    """
    image = fitted(reading.image, side)
    cell = Image.new("RGB", (side + 2 * gap, side + 2 * gap), "white")
    left, top = (cell.width - image.width) // 2, (cell.height - image.height) // 2
    cell.paste(image, (left, top))
    brush, width = ImageDraw.Draw(cell), max(2, side // 48)
    for border, colour in ((reading.truth, GREEN), (reading.outline, VERMILION)):
        if border is None:
            continue
        points = (border.double() + 1) / 2 * torch.tensor(image.size) + torch.tensor([left, top])
        where = [(x, y) for x, y in points.nan_to_num(0).clamp(-1e4, 1e4).tolist()]
        brush.line(where, colour, width)
        if border is reading.outline:
            brush.line(where[: (len(where) - 1) // 4 + 1], YELLOW, width)
    return cell


def shortened(text: str, width: float, size: int) -> str:
    """A text cut to fit into `width` pixels."""
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def sheet(found: Sequence[Reading], title: str = "", rows: tuple[str, ...] = ("input", "sampled")) -> Image.Image:
    """Readings side by side: the originals with the outlines, below them what is read, and above them the captions."""
    columns = max(1, min(COLUMNS, len(found)))
    rows = rows if any(reading.seen for reading in found) else rows[:1]
    head = TOP + LINE * max((reading.caption.count("\n") for reading in found), default=0)
    block_height = head + len(rows) * CELL - GAP * (len(rows) - 1)
    width = max(MARGIN + columns * CELL, math.ceil(font(12).getlength(title)) + 8)
    canvas = Image.new("RGB", (width, TOP + math.ceil(len(found) / columns) * block_height), "white")
    brush = ImageDraw.Draw(canvas)
    brush.text((4, 2), shortened(title, canvas.width - 8, 12), "black", font(12))
    for index, reading in enumerate(found):
        block, column = divmod(index, columns)
        left, top = MARGIN + column * CELL, TOP + block * block_height
        canvas.paste(outlined(reading), (left, top + head))
        if reading.seen:
            seen = fitted(reading.seen, SIDE)
            canvas.paste(seen, (left + (CELL - seen.width) // 2, top + head + CELL + (SIDE - seen.height) // 2))
        mark = {None: "", True: "✓ ", False: "✗ "}[reading.right]
        for number, line in enumerate((mark + reading.caption).split("\n")):
            colour = VERMILION if reading.right is False and number == 0 else "black"
            place = (left + GAP, top + TOP - 4 + number * LINE)
            brush.text(place, shortened(line, CELL - GAP, 11), colour, font(11))
        if column == 0:
            for name, middle in zip(rows, (CELL // 2, CELL + SIDE // 2), strict=False):
                brush.text((4, top + head + middle), name, "black", font(12))
    return canvas


def side_by_side(reading: Reading, side: int = 256) -> Image.Image:
    """One reading in a large picture: the original with the outline, beside it what is read, and above the caption."""
    gap, head = side // 6, 20
    original, seen = outlined(reading, side, gap), fitted(reading.seen or reading.image, side)
    canvas = Image.new("RGB", (2 * original.width - gap, head + original.height), "white")
    canvas.paste(original, (0, head))
    place = (original.width + (side - seen.width) // 2, head + gap + (side - seen.height) // 2)
    canvas.paste(seen, place)
    caption = shortened(reading.caption, canvas.width - 2 * gap, 18)
    ImageDraw.Draw(canvas).text((gap, gap // 2), caption, "black", font(18))
    return canvas


def draw_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str], about: str) -> Figure:
    """How often the images of each class (rows) are taken for each class (columns)."""
    count = len(classes)
    side = min(20.0, 3 + 0.45 * count)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    # By the root of the share, so that a few mistakes among many images are seen.
    shares = [[number / max(1, sum(row)) for number in row] for row in confusion]
    shown = axes.imshow(shares, cmap=LinearSegmentedColormap.from_list("", ["white", BLUE]), norm=PowerNorm(0.5, 0, 1))
    if count <= MOST_COUNTS:
        for row, numbers in enumerate(confusion):
            for column, number in enumerate(numbers):
                colour = "white" if shares[row][column] > 0.4 else "black"
                axes.text(column, row, f"{number:,}" if number else "", ha="center", va="center", color=colour, size=8)
    if count <= MOST_NAMES:
        names = [shortened(name, LONGEST_NAME, 10) for name in classes]
        axes.set_xticks(range(count), names, rotation=60, ha="right", rotation_mode="anchor", parse_math=False)
        axes.set_yticks(range(count), names, parse_math=False)
    axes.set(xlabel="predicted class", ylabel="true class", title=about)
    figure.colorbar(shown, ax=axes, shrink=0.8, label="share of the true class", format=PercentFormatter(1, 0))
    return figure


def draw_angles(curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], about: str) -> Figure:
    """The accuracy among images that are turned by about the same angle, for each name the mean and range of its runs.

    A single run has a standard error in place of the range. Where there are no images, the line is interrupted.
    curves: rows with from, to (degrees), images and accuracy, of each run of each name.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for (name, runs), colour in zip(curves.items(), (BLUE, GREEN, VERMILION), strict=False):
        points = [(math.nan,) * 4]  # angle, mean, low and high
        for first, *others in zip(*runs, strict=True):
            if points[-1][0] < first["from"] - (first["to"] - first["from"]) / 2:  # no images in between
                points.append((math.nan,) * 4)
            accuracies = [row["accuracy"] for row in (first, *others)]
            mean = fmean(accuracies)
            error = math.sqrt(mean * (1 - mean) / first["images"])
            low, high = (min(accuracies), max(accuracies)) if others else (mean - error, mean + error)
            points.append(((first["from"] + first["to"]) / 2, mean, low, high))
        middles, means, lows, highs = zip(*points, strict=True)
        axes.plot(middles, means, "o-", color=colour, markersize=4, label=name)
        axes.fill_between(middles, lows, highs, color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="images turned clockwise (degrees)", ylabel="accuracy", title=about)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_locator(MultipleLocator(30))
    axes.grid(alpha=0.3)
    if any(curves):
        axes.legend()
    return figure


def rendered(figure: Figure) -> Image.Image:
    """A plot as an image."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
