"""Random warps of a data set whose truth is known: where each upright figure is in its distorted image."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from stn.layers import Affine, Projective, ThinPlateSpline, figure_points, pixel_centres, sample
from stn.layers.pose import FIGURE_SIDE

LARGEST_CANVAS = 1024  # pixels a side
Border = Literal["zeros", "border", "reflection", "texture"]


class Distortion(ABC):
    """Places each image on a canvas under a random warp.

    canvas: the side of the canvas in pixels; null: that of the image.
    border: what is beyond the image: "zeros" (black), "border" (its edge), "reflection" (its mirror image), or
        "texture" (coloured noise).
    pieces: how many squares, cut from other images, lie on the canvas behind the image.
    piece_size: their side in pixels.
    opaque: whether the whole square of the image covers what is behind it. If not, only what is bright does, as with
        digits.
    undo: whether the true warp is undone before the network sees the image, as a perfect transformer would.
    Raises ValueError for values out of range.
    """

    def __init__(
        self,
        canvas: int | None = None,
        border: Border = "zeros",
        pieces: int = 0,
        piece_size: int = 6,
        opaque: bool = True,
        undo: bool = False,
    ) -> None:
        if border not in get_args(Border):
            raise ValueError(f"border must be one of {', '.join(get_args(Border))}, not {border!r}")
        if canvas is not None and not 1 <= canvas <= LARGEST_CANVAS:
            raise ValueError(f"canvas must lie between 1 and {LARGEST_CANVAS} pixels, not {canvas}")
        if not 0 <= pieces <= 1000:
            raise ValueError(f"pieces must lie between 0 and 1000, not {pieces}")
        if piece_size < 1:
            raise ValueError(f"piece_size must be 1 or more, not {piece_size}")
        if pieces and border not in ("zeros", "texture"):
            raise ValueError(f"border must be zeros or texture where there are pieces, not {border}")
        self.canvas, self.border, self.pieces, self.piece_size = canvas, border, pieces, piece_size
        self.opaque, self.undo = opaque, undo

    def side(self, size: int) -> int:
        """The side in pixels of what the network sees of images of size x size.

        Raises ValueError for a canvas that is smaller.
        """
        if self.canvas is not None and self.canvas < size:
            raise ValueError(f"canvas must be {size} or more, the side of the images, not {self.canvas}")
        return size if self.undo else self.canvas or size

    @abstractmethod
    def draw(self, count: int, size: int, generator: torch.Generator) -> Tensor:
        """Random θ (count, P) of the warps of images of size x size pixels, on the CPU."""

    @abstractmethod
    def source(self, theta: Tensor, points: Tensor, ratio: float) -> Tensor:
        """Where in the image points (M, 2) of the canvas are read, (N, M, 2). ratio: side of the image / the canvas."""

    @abstractmethod
    def place(self, theta: Tensor, points: Tensor, ratio: float) -> Tensor:
        """Where on the canvas points (M, 2) or (N, M, 2) of the image are, (N, M, 2)."""

    def __call__(
        self, images: Tensor, generator: torch.Generator, figure: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Distorts images (N, C, H, H) uint8; each has a draw of its own.

        figure (N, 16, 2): where in each image the `figure_points` of its figure are; the whole image if None.
        Returns the distorted images, (N, C, canvas, canvas) uint8, and where in them those points are, (N, 16, 2).
        """
        count, _, size, _ = images.shape
        canvas = self.canvas or size
        theta = self.draw(count, size, generator).to(images.device)
        ratio, upright = size / canvas, figure_points().to(theta)
        figure = upright.expand(count, -1, -1) if figure is None else figure.to(theta)
        grid = self.source(theta, pixel_centres(canvas, canvas, device=images.device), ratio)
        distorted = self._blend(images.float(), grid.unflatten(1, (canvas, canvas)), generator)
        if self.undo:
            # The spline through the corners and points between them undoes any affine warp exactly.
            spline = ThinPlateSpline(FIGURE_SIDE).to(images.device)
            back = spline((self.place(theta, upright, ratio) - upright).flatten(1), pixel_centres(size, size).to(theta))
            distorted = sample(distorted, back.unflatten(1, (size, size)), padding="zeros")
        else:
            figure = self.place(theta, figure, ratio)
        return distorted.round_().clamp_(0, 255).to(torch.uint8), figure

    def _blend(self, images: Tensor, grid: Tensor, generator: torch.Generator) -> Tensor:
        """Reads images (N, C, H, W) at points of the grid, before the texture and the pieces."""
        if self.border != "texture" and not self.pieces:  # with pieces, what is between them is black or texture
            return sample(images, grid, padding=self.border)
        read = sample(images, grid, padding="zeros")
        count, channels, canvas, _ = read.shape
        behind = torch.zeros_like(read)
        if self.border == "texture":
            behind = texture(count, channels, canvas, generator).to(read)
        if self.pieces:
            behind = self._with_pieces(behind, images, generator)
        if not self.opaque:
            return torch.maximum(read, behind)
        inside = (grid.abs() <= 1).all(dim=-1)[:, None]
        return torch.where(inside, read, behind)

    def _with_pieces(self, behind: Tensor, images: Tensor, generator: torch.Generator) -> Tensor:
        """Puts squares of other images (N, C, H, W) at random places of `behind` (N, C, canvas, canvas)."""
        count, channels, canvas, _ = behind.shape
        size = images.shape[-1]
        side = min(self.piece_size, size, canvas)
        squares = images.unfold(2, side, 1).unfold(3, side, 1)  # by place: (N, C, row, column, side, side)
        image, pixels = torch.arange(count), behind.flatten(2)
        offsets = (torch.arange(side).view(-1, 1) * canvas + torch.arange(side)).flatten()

        def at_random(room: int) -> Tensor:
            return torch.randint(room, (count,), generator=generator)

        for _ in range(self.pieces):
            # From another image of the batch, which is shuffled.
            other = (image + 1 + at_random(max(1, count - 1))) % count
            piece = squares[other, :, at_random(size - side + 1), at_random(size - side + 1)].flatten(2)
            corner = at_random(canvas - side + 1) * canvas + at_random(canvas - side + 1)
            place = (corner[:, None] + offsets)[:, None].expand(-1, channels, -1).to(behind.device)
            pixels.scatter_(2, place, piece if self.opaque else torch.maximum(pixels.gather(2, place), piece))
        return pixels.view_as(behind)


def texture(count: int, channels: int, size: int, generator: torch.Generator) -> Tensor:
    """Coloured noise, coarse and fine, (count, channels, size, size), from 0 to 255."""
    coarse = torch.rand(count, channels, size // 8 + 1, size // 8 + 1, generator=generator)
    ground = F.interpolate(coarse, (size, size), mode="bicubic") + 0.12 * torch.randn(
        count, channels, size, size, generator=generator
    )
    return ground.clamp_(0, 1) * 255


def between(bounds: Sequence[float], count: int, generator: torch.Generator) -> Tensor:
    """Uniform random numbers, (count,)."""
    low, high = bounds
    return low + (high - low) * torch.rand(count, generator=generator)


class WarpDistortion(Distortion):
    """A distortion by warps of a group, whose inverse is known. θ is what a transformer needs to undo it."""

    warp: Affine | Projective

    def source(self, theta: Tensor, points: Tensor, ratio: float) -> Tensor:
        return self.warp(self.warp.inverse(theta), points / ratio)

    def place(self, theta: Tensor, points: Tensor, ratio: float) -> Tensor:
        return ratio * self.warp(theta, points)


class AffineDistortion(WarpDistortion):
    """A random rotation, scale, aspect, shear and shift.

    rotation: the largest angle in degrees, in both directions.
    scale: the smallest and the largest size, in fractions of the image's.
    aspect: the largest ratio of height to width; and its inverse.
    shear: the largest tangent of the angle by which upright lines lean.
    shift: the largest shift along each axis, in half-widths of the image; null: anywhere on the canvas.
    common: see `Distortion`.
    """

    warp = Affine()

    def __init__(
        self,
        rotation: float = 90.0,
        scale: Sequence[float] = (0.7, 1.2),
        aspect: float = 1.0,
        shear: float = 0.0,
        shift: float | None = 0.2,
        **common: object,
    ) -> None:
        super().__init__(**common)  # type: ignore[arg-type]
        if not 0 <= rotation <= 180:
            raise ValueError(f"rotation must lie between 0 and 180 degrees, not {rotation}")
        check_scale(scale)
        for name, value, low, high in (("aspect", aspect, 1, 4), ("shear", shear, 0, 2), ("shift", shift, 0, 10)):
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} must lie between {low} and {high}, not {value}")
        self.rotation, self.scale, self.aspect, self.shear, self.shift = rotation, tuple(scale), aspect, shear, shift

    def draw(self, count: int, size: int, generator: torch.Generator) -> Tensor:
        angle = between((-1, 1), count, generator) * math.radians(self.rotation)
        scale = between(self.scale, count, generator)
        aspect = (between((-0.5, 0.5), count, generator) * math.log(self.aspect)).exp()
        shear = between((-self.shear, self.shear), count, generator)
        # The square that is not turned stays on the canvas; in half-widths of the image, as the warp.
        room = ((self.canvas or size) / size - scale).clamp(min=0) if self.shift is None else self.shift
        x, y = (between((-1, 1), count, generator) * room for _ in range(2))
        cos, sin, wide, high = angle.cos(), angle.sin(), scale / aspect, scale * aspect
        return torch.stack(
            (cos * wide, (cos * shear - sin) * high, x, sin * wide, (sin * shear + cos) * high, y), dim=1
        )


class ProjectiveDistortion(WarpDistortion):
    """A random scale, then a random displacement of each corner (Jaderberg et al. 2015, section 4.1).

    scale: the smallest and the largest size, in fractions of the image's.
    displacement: the deviation of each coordinate of a corner, or of the corner along its diagonal, in pixels.
    along_diagonal: whether a corner moves along its diagonal alone, so that few images become too thin to be known.
    common: see `Distortion`.
    """

    warp = Projective()

    def __init__(
        self,
        scale: Sequence[float] = (0.75, 1.0),
        displacement: float = 5.0,
        along_diagonal: bool = False,
        **common: object,
    ) -> None:
        super().__init__(**common)  # type: ignore[arg-type]
        check_scale(scale)
        check_displacement(displacement)
        self.scale, self.displacement, self.along_diagonal = tuple(scale), displacement, along_diagonal

    def draw(self, count: int, size: int, generator: torch.Generator) -> Tensor:
        corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
        scale = between(self.scale, count, generator)[:, None, None]
        moved = torch.randn(count, 4, 1 if self.along_diagonal else 2, generator=generator)
        moved = moved * (corners / math.sqrt(2) if self.along_diagonal else 1) * (2 * self.displacement / size)
        # A corner that is pushed across the diagonal would fold the image, so the draw is halved until none is.
        least = 0.4 * scale[..., 0].clamp(max=0.5).square()
        for _ in range(8):
            sides = (scale * corners + moved).roll(-1, 1) - (scale * corners + moved)
            turn = sides[..., 0] * sides.roll(-1, 1)[..., 1] - sides[..., 1] * sides.roll(-1, 1)[..., 0]
            moved = torch.where((turn > least).all(dim=1)[:, None, None], moved, moved / 2)
        return homography(corners, scale * corners + moved)


def homography(points: Tensor, moved: Tensor) -> Tensor:
    """θ (N, 8) of the `Projective` warps that map four points (4, 2) to `moved` (N, 4, 2)."""
    count = len(moved)
    x, y = points.to(moved).expand(count, -1, -1).unbind(2)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    u, v = moved.unbind(2)
    of_u = torch.stack((x, y, one, zero, zero, zero, -x * u, -y * u), dim=2)
    of_v = torch.stack((zero, zero, zero, x, y, one, -x * v, -y * v), dim=2)
    return torch.linalg.solve(torch.cat((of_u, of_v), dim=1), torch.cat((u, v), dim=1))


class ElasticDistortion(Distortion):
    """A random scale, then a spline that displaces 4 x 4 points at random (Jaderberg et al. 2015, section 4.1).

    scale: the smallest and the largest size, in fractions of the image's.
    displacement: the deviation of each coordinate of a point, in pixels.
    common: see `Distortion`.
    """

    def __init__(self, scale: Sequence[float] = (0.75, 1.0), displacement: float = 1.5, **common: object) -> None:
        super().__init__(**common)  # type: ignore[arg-type]
        check_scale(scale)
        check_displacement(displacement)
        self.scale, self.displacement, self.spline = tuple(scale), displacement, ThinPlateSpline(4)

    def side(self, size: int) -> int:
        if self.displacement > size / 9:
            raise ValueError(
                f"displacement must be {size / 9:.1f} pixels or less, a ninth of the side of the images, not "
                f"{self.displacement}: more folds the image"
            )
        return super().side(size)

    def draw(self, count: int, size: int, generator: torch.Generator) -> Tensor:
        scale = between(self.scale, count, generator)[:, None]
        moved = torch.randn(count, 32, generator=generator).clamp(-2, 2) * (2 * self.displacement / size)
        return torch.cat((scale, moved), dim=1)

    def source(self, theta: Tensor, points: Tensor, ratio: float) -> Tensor:
        return self.spline(theta[:, 1:], points / ratio) / theta[:, :1, None]

    def place(self, theta: Tensor, points: Tensor, ratio: float) -> Tensor:
        wanted = points * theta[:, :1, None]
        found = wanted
        # A contraction, as long as the spline does not fold. To stop at those that have converged would hold up a GPU.
        for _ in range(30):
            found = found + (wanted - self.spline(theta[:, 1:], found))
        return ratio * found


def check_scale(scale: Sequence[float]) -> None:
    """Raises ValueError for a range of scales that cannot be drawn from."""
    if len(scale) != 2 or not 0.05 <= scale[0] <= scale[1] <= 20:
        raise ValueError(f"scale must be two numbers from 0.05 to 20, the smaller one first, not {list(scale)}")


def check_displacement(displacement: float) -> None:
    """Raises ValueError for a displacement out of range."""
    if not 0 <= displacement <= 100:
        raise ValueError(f"displacement must lie between 0 and 100 pixels, not {displacement}")
