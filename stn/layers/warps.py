"""Families of warps: functions from the points of the output image to points of the input image.

Every warp has `num_params`, `identity()` and `warp(theta, points)`. Points are (x, y) in half-widths and half-heights.
So the image is the square [-1, 1], and one θ means the same at every resolution. On an image that is not square,
rotations act as if it were stretched to a square. Matrix groups also have `inverse` and `compose`, which act on θ.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn.layers.homography import Project, project
from stn.layers.sampling import is_traced, sample, without_autocast

LARGEST_LATTICE = 32  # control points a side: one for each pixel of a small image
MOST_ANGLES = 360
FARTHEST_REACH = 100  # of the scale, and of the shift in half-widths
FAR_TURN = math.radians(29)  # angles that are at least as far apart count as two hypotheses

FOUND_WITHIN = 1e-3  # half-widths: an inverse that misses by more than a hundredth of a pixel in 32 is no inverse


class Warp(nn.Module, ABC):
    """A family of warps, each given by `num_params` numbers θ. A new family implements `identity` and `move`.

    `warp(theta, points)` returns where in the input each output point is read, (N, M, 2), for theta (N, P) and points
    (N, M, 2), or (M, 2) where all images have the same points. Raises ValueError for other shapes.
    """

    num_params: int

    @abstractmethod
    def identity(self) -> Tensor:
        """θ (P,) to start from: the warp that moves nothing, if the family has one."""

    def window(self, scale: float, x: float, y: float) -> Tensor:
        """θ (P,) of the window of size `scale` about (x, y), or the identity if the family has no windows."""
        return self.identity()

    @abstractmethod
    def move(self, theta: Tensor, points: Tensor) -> Tensor:
        """As `warp(theta, points)`, without checking the shapes."""

    def pose_loss(self, theta: Tensor, figure: Tensor) -> Tensor:
        """How far θ (N, P) is from showing the figures upright, (N,), to be minimized.

        figure (N, K², 2): where in the input the K x K points that span each upright figure are, see `lattice_points`.
        The mean over points and axes of the distance in half-widths, squared where it is small.
        """
        upright = lattice_points(math.isqrt(figure.shape[1])).to(theta)
        return F.smooth_l1_loss(self(theta, upright), figure, beta=0.1, reduction="none").mean(dim=(1, 2))

    def forward(self, theta: Tensor, points: Tensor) -> Tensor:
        """Where in the input each output point is read, (N, M, 2)."""
        if theta.ndim != 2 or theta.shape[1] != self.num_params:
            raise ValueError(
                f"theta must be (N, {self.num_params}) for {type(self).__name__}, not {tuple(theta.shape)}"
            )
        if points.ndim not in (2, 3) or points.shape[-1] != 2:
            raise ValueError(f"points must be (M, 2) or (N, M, 2), not {tuple(points.shape)}")
        return self.move(theta, points)

    def invert(self, theta: Tensor, points: Tensor) -> Tensor:
        """The output points that are read at the input points (M, 2) or (N, M, 2): (N, M, 2).

        By Newton's method unless the family has an inverse. A point is NaN where the method does not converge, as it
        may where the warp folds. It has a gradient, but not a second one.
        """
        found = points.expand(theta.shape[0], -1, -1)

        def jacobians() -> Tensor:
            return jacobian(lambda at: self(theta, at), found)

        with torch.no_grad():
            for _ in range(20):
                found = found - solve(jacobians(), self(theta, found) - points)
            missed = ~((self(theta, found) - points).norm(dim=-1, keepdim=True) <= FOUND_WITHIN)
            # A point that is missed must not make the gradient of the others NaN.
            found = found.masked_fill(missed, 0)
            matrix = torch.where(missed[..., None], torch.eye(2).to(found), jacobians())
        # By the implicit function theorem, one more step has the gradient of the inverse.
        step = solve(matrix, self(theta, found) - points)
        return (found - (step - step.detach())).masked_fill(missed, torch.nan)

    def decompose(self, theta: Tensor) -> dict[str, Tensor]:
        """Rotation, scale and shift of θ (N, P), see `decompose`."""
        return decompose(self, theta)


def decompose(warp: Callable[[Tensor, Tensor], Tensor], theta: Tensor) -> dict[str, Tensor]:
    """Rotation, scale, aspect, shear and shift of θ (N, P), each (N,), see `nearest_affine`."""
    return nearest_affine(warp(theta, lattice_points(5).to(theta)))


def nearest_affine(moved: Tensor) -> dict[str, Tensor]:
    """Rotation, scale, aspect, shear and shift, each (N,), of the affine map nearest to where a lattice went.

    moved (N, K², 2): where the K x K points of `lattice_points` went.
    The map's matrix is rotation · [[1, shear], [0, 1]] · diag(scale along x, scale along y); the shift follows.
    rotation: in radians, from x towards y (clockwise in a picture).
    scale: the root of the product of the two scales; below 1 the transformer zooms in.
    aspect: the scale along y over the scale along x; negative for a mirrored image.
    shear: a tangent. shift_x, shift_y: in fractions of the half-width and the half-height.
    """
    lattice = lattice_points(math.isqrt(moved.shape[1])).to(moved)
    # Over a symmetric lattice x, y and 1 are orthogonal, so that least squares needs only means.
    spread = lattice[:, 0].square().mean()
    a, c = ((moved * lattice[:, :1]).mean(dim=1) / spread).unbind(1)
    b, d = ((moved * lattice[:, 1:]).mean(dim=1) / spread).unbind(1)
    shift_x, shift_y = moved.mean(dim=1).unbind(1)
    along_x, determinant = torch.hypot(a, c), a * d - b * c
    return {
        "rotation": torch.atan2(c, a),
        "scale": determinant.abs().sqrt(),
        "aspect": determinant / along_x.square(),
        "shear": (a * b + c * d) / determinant,
        "shift_x": shift_x,
        "shift_y": shift_y,
    }


def jacobian(warped: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """The Jacobians (N, M, 2, 2) of a map of points (N, M, 2) to points that acts on each of them alone.

    By reverse mode: before torch 2.15 the sampler of `Diffeomorphic` had no other.
    """
    moved, gradients = torch.func.vjp(warped, points.detach())  # type: ignore[misc]  # its annotation has three
    along_x, along_y = torch.eye(2).to(moved).unbind()
    return torch.stack([gradients(axis.expand_as(moved))[0] for axis in (along_x, along_y)], dim=-2)


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """x (N, M, 2) with matrix (N, M, 2, 2) @ x = right (N, M, 2); not finite, and no error, for a singular matrix."""
    return torch.linalg.solve_ex(matrix, right)[0]


def lattice_points(size: int) -> Tensor:
    """size x size points that span the square [-1, 1], row by row: (size², 2), (x, y), float64."""
    along = torch.linspace(-1, 1, size, dtype=torch.float64)
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack((x, y), dim=-1).view(-1, 2)


class MatrixWarp(Warp):
    """Warps by a matrix, (x, y, 1) -> matrix @ (x, y, 1)."""

    @abstractmethod
    def matrix(self, theta: Tensor) -> Tensor:
        """The matrices (N, 3, 3) of θ (N, P)."""

    def move(self, theta: Tensor, points: Tensor) -> Tensor:
        return (self.matrix(theta)[:, :2] @ homogeneous(points).mT).mT


class MatrixGroup(MatrixWarp):
    """Warps by matrices that form a group, so that θ can be inverted and composed."""

    @abstractmethod
    def parameters_of(self, matrix: Tensor) -> Tensor:
        """θ (N, P) of matrices (N, 3, 3) of the group, whose last entry is 1."""

    def window(self, scale: float, x: float, y: float) -> Tensor:
        return self.parameters_of(torch.tensor([[[scale, 0, x], [0, scale, y], [0, 0, 1]]]))[0]

    def inverse(self, theta: Tensor) -> Tensor:
        """θ (N, P) of the warps that undo those of θ (N, P)."""
        a, b, c = self.matrix(theta).unbind(2)
        # The adjugate will do: the scale of a homogeneous matrix does not matter.
        rows = (torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b))
        adjugate = torch.stack(rows, dim=1)
        return self.parameters_of(adjugate / adjugate[:, 2:, 2:])

    def compose(self, outer: Tensor, inner: Tensor) -> Tensor:
        """θ (N, P) of the warps that apply `inner` first and `outer` to its result, each θ (N, P)."""
        product = self.matrix(outer) @ self.matrix(inner)
        return self.parameters_of(product / product[:, 2:, 2:])

    def invert(self, theta: Tensor, points: Tensor) -> Tensor:
        return self(self.inverse(theta), points)


def homogeneous(points: Tensor) -> Tensor:
    """Points (…, 2) as (x, y, 1): (…, 3), in memory as planes of x, y and 1, of which products are fastest."""
    return torch.cat((points.mT, torch.ones_like(points[..., :1]).mT), dim=-2).mT


def matrices(rows: list[list[Tensor]]) -> Tensor:
    """Matrices (N, 3, 3) from two rows of three (N,); the third row is (0, 0, 1)."""
    zero, one = torch.zeros_like(rows[0][0]), torch.ones_like(rows[0][0])
    return torch.stack([*rows[0], *rows[1], zero, zero, one], dim=1).view(-1, 3, 3)


class Translation(MatrixGroup):
    """(x, y) -> (x + tx, y + ty), θ = (tx, ty)."""

    num_params = 2

    def identity(self) -> Tensor:
        return torch.zeros(2)

    def matrix(self, theta: Tensor) -> Tensor:
        tx, ty = theta.unbind(1)
        zero, one = torch.zeros_like(tx), torch.ones_like(tx)
        return matrices([[one, zero, tx], [zero, one, ty]])

    def parameters_of(self, matrix: Tensor) -> Tensor:
        return matrix[:, :2, 2]


class Rotation(MatrixGroup):
    """Rotation about the image's centre, θ = (angle,) in radians from x towards y (clockwise in a picture)."""

    num_params = 1

    def identity(self) -> Tensor:
        return torch.zeros(1)

    def matrix(self, theta: Tensor) -> Tensor:
        cos, sin = theta[:, 0].cos(), theta[:, 0].sin()
        zero = torch.zeros_like(cos)
        return matrices([[cos, -sin, zero], [sin, cos, zero]])

    def parameters_of(self, matrix: Tensor) -> Tensor:
        return torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0])[:, None]


class Attention(MatrixGroup):
    """An upright window, (x, y) -> (s x + tx, s y + ty), θ = (s, tx, ty). Jaderberg et al. 2015, equation 2."""

    num_params = 3

    def identity(self) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0])

    def matrix(self, theta: Tensor) -> Tensor:
        s, tx, ty = theta.unbind(1)
        zero = torch.zeros_like(s)
        return matrices([[s, zero, tx], [zero, s, ty]])

    def parameters_of(self, matrix: Tensor) -> Tensor:
        return torch.stack((matrix[:, 0, 0], matrix[:, 0, 2], matrix[:, 1, 2]), dim=1)


class Similarity(MatrixGroup):
    """Rotation, one scale and shift, (x, y) -> (a x - b y + tx, b x + a y + ty), θ = (a, b, tx, ty)."""

    num_params = 4

    def identity(self) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0, 0.0])

    def matrix(self, theta: Tensor) -> Tensor:
        a, b, tx, ty = theta.unbind(1)
        return matrices([[a, -b, tx], [b, a, ty]])

    def parameters_of(self, matrix: Tensor) -> Tensor:
        return torch.stack((matrix[:, 0, 0], matrix[:, 1, 0], matrix[:, 0, 2], matrix[:, 1, 2]), dim=1)


class Affine(MatrixGroup):
    """(x, y) -> (a x + b y + tx, c x + d y + ty), θ = (a, b, tx, c, d, ty). Jaderberg et al. 2015, equation 1."""

    num_params = 6

    def identity(self) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])

    def matrix(self, theta: Tensor) -> Tensor:
        last = torch.zeros_like(theta[:, :3])
        last[:, 2] = 1
        return torch.cat((theta, last), dim=1).view(-1, 3, 3)

    def parameters_of(self, matrix: Tensor) -> Tensor:
        return matrix[:, :2].flatten(1)


class Projective(MatrixGroup):
    """A plane seen from another viewpoint: affine, divided by g x + h y + 1, θ = (a, b, tx, c, d, ty, g, h).

    horizon: the distance from 0 at which divisors are kept, so that no point is at infinity.
    """

    num_params = 8

    def __init__(self, horizon: float = 1e-3) -> None:
        super().__init__()
        if horizon <= 0:
            raise ValueError(f"horizon must be above 0, not {horizon}")
        self.horizon = horizon

    def identity(self) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])

    def matrix(self, theta: Tensor) -> Tensor:
        return torch.cat((theta, torch.ones_like(theta[:, :1])), dim=1).view(-1, 3, 3)

    def parameters_of(self, matrix: Tensor) -> Tensor:
        return matrix.flatten(1)[:, :8]

    def move(self, theta: Tensor, points: Tensor) -> Tensor:
        matrix, points = self.matrix(theta), homogeneous(points)
        if is_traced():  # the compiler fuses the plain form itself
            return project(matrix, points, self.horizon).mT
        with without_autocast(theta.device):
            moved, _ = Project.apply(matrix, points, self.horizon)
        return moved.mT


class RotationClasses(MatrixWarp):
    """Rotation as a choice among angles, one scale and shift, θ = (score of each angle, s, x, y).

    The rotation is the mean of the best angle and its two neighbours, weighted by the softmax of their scores: where an
    image may be upright or lying, a mean over all angles would be neither. The scale is largest_scale^tanh(s), and the
    shift largest_shift · tanh((x, y)).

    classes: how many angles there are; an odd number, so that one is 0, or any on the full circle.
    span: the range of the angles in degrees, half to each side; 360 for the full circle.
    largest_scale: up to 100, and its inverse is the smallest.
    largest_shift: along each axis, in half-widths, up to 100.
    Raises ValueError for values out of range.
    """

    def __init__(
        self, classes: int = 25, span: float = 180.0, largest_scale: float = 2.0, largest_shift: float = 0.5
    ) -> None:
        super().__init__()
        if not 2 <= classes <= MOST_ANGLES or not 0 < span <= 360:
            raise ValueError(
                f"classes must lie between 2 and {MOST_ANGLES} and span between 0 and 360 degrees, not {classes} and "
                f"{span}"
            )
        self.periodic = span == 360
        if not self.periodic and classes % 2 == 0:
            raise ValueError(f"classes must be odd unless span is 360 degrees, not {classes}")
        if not 1 < largest_scale <= FARTHEST_REACH or not 0 < largest_shift <= FARTHEST_REACH:
            raise ValueError(
                f"largest_scale must be above 1 and largest_shift above 0, both up to {FARTHEST_REACH}, not "
                f"{largest_scale} and {largest_shift}"
            )
        self.classes, self.num_params = classes, classes + 3
        self.step = math.radians(span) / (classes if self.periodic else classes - 1)
        self.largest_scale, self.largest_shift = largest_scale, largest_shift
        angles = (torch.arange(classes, dtype=torch.float64) - classes // 2) * self.step
        self.angles: Tensor
        self.register_buffer("angles", angles.to(torch.get_default_dtype()), persistent=False)

    def identity(self) -> Tensor:
        return torch.cat((2 * self.angles.cos(), torch.zeros(3)))

    def parts(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of the angles (N, classes), log2 of the scale (N, 1), and shift (N, 2) in half-widths."""
        scale, shift = theta[:, self.classes : -2].tanh(), theta[:, -2:].tanh()
        return theta[:, : self.classes], scale * math.log2(self.largest_scale), shift * self.largest_shift

    def matrix(self, theta: Tensor) -> Tensor:
        scores, scale, shift = self.parts(theta)
        angle = self.rotation(scores)
        cos, sin = scale[:, 0].exp2() * angle.cos(), scale[:, 0].exp2() * angle.sin()
        return matrices([[cos, -sin, shift[:, 0]], [sin, cos, shift[:, 1]]])

    def invert(self, theta: Tensor, points: Tensor) -> Tensor:
        # The inverse of a scaled rotation is its transpose, divided by the scale twice.
        linear, shift = self.matrix(theta)[:, :2].tensor_split([2], dim=2)
        return (points - shift.mT) @ linear / torch.linalg.det(linear)[:, None, None]

    def rotation(self, scores: Tensor) -> Tensor:
        """The angle (N,) in radians of the scores (N, classes)."""
        best, offset = scores.argmax(dim=1, keepdim=True), torch.arange(-1, 2, device=scores.device)
        near = best + offset
        shares = scores.gather(1, near % self.classes)
        if not self.periodic:  # the two ends are no neighbours
            shares = shares.masked_fill((near < 0) | (near >= self.classes), -torch.inf)
        turned = (shares.softmax(dim=1) * offset).sum(dim=1) * self.step
        return self.angles.to(scores)[best[:, 0]] + turned

    def pose_loss(self, theta: Tensor, figure: Tensor) -> Tensor:
        """Cross-entropy of the angle, plus the distance in log2 of the scale and in half-widths of the shift."""
        scores, scale, shift = self.parts(theta)
        truth = nearest_affine(figure)
        angle = F.cross_entropy(scores, self.shares(truth["rotation"]), reduction="none")
        found = torch.cat((scale, shift), dim=1)
        wanted = torch.stack((truth["scale"].log2(), truth["shift_x"], truth["shift_y"]), dim=1)
        return angle + 5 * F.smooth_l1_loss(found, wanted, beta=0.1, reduction="none").sum(dim=1)

    def second_best(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """θ (N, P) with the best angle that is `FAR_TURN` or more from that of θ (N, P), and how probable θ is, (N,).

        The probability of θ is that of the angles that are nearer to it.
        """
        scores = theta[:, : self.classes]
        away = (torch.arange(self.classes, device=theta.device) - scores.argmax(dim=1, keepdim=True)).abs()
        if self.periodic:
            away = torch.minimum(away, self.classes - away)
        near = away * self.step < FAR_TURN
        share = (scores.softmax(dim=1) * near).sum(dim=1)
        other = scores.masked_fill(near, torch.finfo(scores.dtype).min)
        return torch.cat((other, theta[:, self.classes :]), dim=1), share

    def shares(self, rotation: Tensor) -> Tensor:
        """The share of each class in rotations (N,) in radians: (N, classes), divided between the two nearest."""
        place = rotation / self.step + self.classes // 2
        if not self.periodic:
            place = place.clamp(0, self.classes - 1)
        first, part = place.floor().long(), place - place.floor()
        below, above = (F.one_hot((first + k) % self.classes, self.classes) for k in (0, 1))
        return below * (1 - part)[:, None] + above * part[:, None]

    def extra_repr(self) -> str:
        return f"classes={self.classes}, step={math.degrees(self.step):g} degrees"


class AffineExponential(MatrixWarp):
    """Affine by the matrix exponential, so always invertible: exp([[θ1 θ2 θ3], [θ4 θ5 θ6], [0 0 0]]).

    Detlefsen et al. 2018, "Deep Diffeomorphic Transformer Networks". The product of two exponentials
    need not be an exponential, so there is no `compose`.
    """

    num_params = 6

    def identity(self) -> Tensor:
        return torch.zeros(6)

    def matrix(self, theta: Tensor) -> Tensor:
        # exp(40) is as large as a point can be; the exponential of more overflows.
        return torch.linalg.matrix_exp(F.pad(theta.clamp(-20, 20), (0, 3)).view(-1, 3, 3))

    def inverse(self, theta: Tensor) -> Tensor:
        """θ (N, 6) of the warps that undo those of θ (N, 6)."""
        return -theta

    def invert(self, theta: Tensor, points: Tensor) -> Tensor:
        return self(-theta, points)


class LatticeWarp(Warp):
    """Warps by displacing `size` x `size` control points, linear in θ: points + basis(points) @ θ.

    θ holds the displacement (x, y) of each control point, row by row.

    size: the control points along each side.
    """

    smallest = 2

    def __init__(self, size: int) -> None:
        super().__init__()
        if not self.smallest <= size <= LARGEST_LATTICE:
            raise ValueError(
                f"size must lie between {self.smallest} and {LARGEST_LATTICE} control points a side, not {size}"
            )
        self.size, self.num_params = size, 2 * size**2

    @abstractmethod
    def basis(self, points: Tensor) -> Tensor:
        """The weight with which each control point moves each of `points` (…, 2): (…, size²)."""

    def identity(self) -> Tensor:
        return torch.zeros(self.num_params)

    def move(self, theta: Tensor, points: Tensor) -> Tensor:
        return (points.mT + theta.view(-1, self.size**2, 2).mT @ self.basis(points).mT).mT

    def extra_repr(self) -> str:
        return f"size={self.size}"


class ThinPlateSpline(LatticeWarp):
    """The smoothest warp that displaces a lattice of control points by θ (Bookstein 1989).

    ridge: above 0, the displacements are met approximately, and the warp is smoother.
    """

    def __init__(self, size: int = 4, ridge: float = 0.0) -> None:
        super().__init__(size)
        if ridge < 0:
            raise ValueError(f"ridge must not be negative, not {ridge}")
        control = lattice_points(size)
        ones = torch.ones(size**2, 1, dtype=torch.float64)
        plane = torch.cat((ones, control), dim=1)
        system = torch.zeros(size**2 + 3, size**2 + 3, dtype=torch.float64)
        system[:-3, :-3] = tps_kernel(control, control) + ridge * torch.eye(size**2, dtype=torch.float64)
        system[:-3, -3:], system[-3:, :-3] = plane, plane.T
        solution = torch.linalg.inv(system)[:, :-3].contiguous()
        self.control: Tensor
        self.solution: Tensor
        # They follow from `size` and `ridge`, so checkpoints need not hold them.
        self.register_buffer("control", control.to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("solution", solution.to(torch.get_default_dtype()), persistent=False)

    def basis(self, points: Tensor) -> Tensor:
        plane = torch.cat((torch.ones_like(points[..., :1]), points), dim=-1)
        bent = tps_kernel(points, self.control.to(points))
        return torch.cat((bent, plane), dim=-1) @ self.solution.to(points)


def tps_kernel(points: Tensor, control: Tensor) -> Tensor:
    """r² log r² for the distance r between `points` (…, 2) and `control` (K, 2), 0 at r = 0: (…, K)."""
    squared = (points[..., None, :] - control).square().sum(dim=-1)
    return squared * squared.clamp(min=torch.finfo(squared.dtype).tiny).log()


class BSpline(LatticeWarp):
    """Free-form deformation: cubic B-splines on a lattice, each with a local effect (Rueckert et al. 1999).

    The lattice extends one control point beyond the image on each side. Points outside the image move as the border
    nearest to them.
    """

    smallest = 4

    def __init__(self, size: int = 6) -> None:
        super().__init__(size)

    def basis(self, points: Tensor) -> Tensor:
        cells = self.size - 3
        where = (points.clamp(-1, 1) + 1) * (cells / 2) + 1
        control = torch.arange(self.size, device=points.device, dtype=points.dtype)
        distance = (where[..., None] - control).abs()
        near = 2 / 3 - distance.square() + distance**3 / 2
        x, y = torch.where(distance < 1, near, (2 - distance).clamp(min=0) ** 3 / 6).unbind(-2)
        return (y[..., :, None] * x[..., None, :]).flatten(-2)


class Diffeomorphic(Warp):
    """A warp that never folds: the flow along a constant velocity field for one unit of time.

    θ is the velocity at the points of a cubic B-spline lattice. The flow is integrated by scaling and squaring (Arsigny
    et al. 2006, "A Log-Euclidean Framework for Statistics on Diffeomorphisms") on a grid, and interpolated between its
    nodes. With 33 nodes and θ up to `bound` its mean error is 0.03 pixels of 32. -θ is the inverse, up to that error.

    size: the control points along each side.
    bound: the largest velocity along an axis, in half-widths; a tanh keeps θ within it.
    nodes: the nodes of the grid along each side.
    squarings: the flow is that of 1 / 2^squarings of the time, doubled so often.
    """

    def __init__(self, size: int = 6, bound: float = 0.5, nodes: int = 33, squarings: int = 6) -> None:
        super().__init__()
        if bound <= 0 or not 2 <= nodes <= 257 or not 1 <= squarings <= 20:
            raise ValueError(
                f"bound {bound}, nodes {nodes} and squarings {squarings} must be above 0, in [2, 257] and in [1, 20]"
            )
        lattice = BSpline(size)
        self.size, self.num_params = size, lattice.num_params
        self.bound, self.nodes, self.squarings = bound, nodes, squarings
        at = lattice_points(nodes)
        self.basis: Tensor
        self.grid: Tensor
        dtype = torch.get_default_dtype()
        self.register_buffer("basis", lattice.basis(at).to(dtype), persistent=False)
        self.register_buffer("grid", at.view(1, nodes, nodes, 2).to(dtype), persistent=False)

    def identity(self) -> Tensor:
        return torch.zeros(self.num_params)

    def move(self, theta: Tensor, points: Tensor) -> Tensor:
        velocity = self.bound * (theta / self.bound).tanh()
        velocity = self.basis.to(theta) @ velocity.view(-1, self.size**2, 2)
        displacement = velocity.mT.unflatten(2, (self.nodes, self.nodes)) / 2**self.squarings
        grid = self.grid.to(theta)
        for _ in range(self.squarings):
            displacement = displacement + interpolate_field(displacement, grid + displacement.permute(0, 2, 3, 1))
        points = points.expand(theta.shape[0], -1, -1)
        return points + interpolate_field(displacement, points[:, None]).squeeze(2).mT

    def inverse(self, theta: Tensor) -> Tensor:
        """θ (N, P) of the warps that undo those of θ (N, P)."""
        return -theta

    def invert(self, theta: Tensor, points: Tensor) -> Tensor:
        return self(-theta, points)

    def extra_repr(self) -> str:
        return f"size={self.size}, bound={self.bound}"


def interpolate_field(field: Tensor, points: Tensor) -> Tensor:
    """Bilinear values (N, 2, h, w) at points (N, h, w, 2) of a field (N, 2, H, W) on nodes that span [-1, 1]."""
    return sample(field, points, padding="border", align_corners=True)


class LogPolar(Warp):
    """Angle along x, logarithm of the radius along y, about an origin θ = (x, y) (Esteves et al. 2018).

    Rotating or scaling the image about the origin shifts the output. As x goes from -1 to 1, the angle makes a full
    turn: it starts at the left and passes the top. As y goes from -1 to 1, the radius goes from `inner` to `outer`. The
    angle is periodic, so a following convolution should use circular padding along the width.

    inner: the smallest radius, in half-widths.
    outer: the largest radius, in half-widths.
    """

    num_params = 2

    def __init__(self, inner: float = 1 / 16, outer: float = 1.0) -> None:
        super().__init__()
        if not 0 < inner < outer:
            raise ValueError(f"0 < inner < outer must hold, not {inner} and {outer}")
        self.inner, self.outer = inner, outer

    def identity(self) -> Tensor:
        """The image's centre as the origin; no member of this family leaves the image as it is."""
        return torch.zeros(2)

    def move(self, theta: Tensor, points: Tensor) -> Tensor:
        angle, depth = math.pi * points[..., 0], (points[..., 1] + 1) / 2
        radius = self.inner * (depth * math.log(self.outer / self.inner)).exp()
        return theta[:, None] + radius[..., None] * torch.stack((angle.cos(), angle.sin()), dim=-1)

    def invert(self, theta: Tensor, points: Tensor) -> Tensor:
        x, y = (points - theta[:, None]).unbind(-1)
        depth = (torch.hypot(x, y) / self.inner).log() / math.log(self.outer / self.inner)
        return torch.stack((torch.atan2(y, x) / math.pi, 2 * depth - 1), dim=-1)

    def extra_repr(self) -> str:
        return f"inner={self.inner}, outer={self.outer}"
