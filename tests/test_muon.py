import copy

import pytest
import torch
from torch import nn, optim

from stn.muon import Muon, orthogonalized
from stn.networks import ConvNorm
from stn.optimization import Optimization


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_orthogonalized_has_the_same_directions_and_alike_sizes(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalized(matrix, steps=5)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    sizes = left.mT @ found @ right.mT
    diagonal = sizes.diagonal()
    torch.testing.assert_close(sizes, torch.diag(diagonal), atol=1e-4, rtol=0)
    assert ((diagonal > 0.6) & (diagonal < 1.3)).all()


def test_steps_are_those_of_torchs_muon() -> None:
    """Which takes matrices alone, and keeps no norm: each step is compared from the same weights."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = nn.Parameter(torch.zeros(6, 3, 2, 2)), nn.Parameter(torch.zeros(6, 12))
    group = {"params": [ours], "orthogonal": True}
    muon = Muon([group], lr=0.1, momentum=0.8)
    reference = optim.Muon([theirs], lr=0.1, momentum=0.8, weight_decay=0.0, ns_steps=3)
    for _ in range(4):
        start = torch.randn(6, 3, 2, 2, generator=generator)
        start *= 6**0.5 / start.norm()
        with torch.no_grad():
            ours.copy_(start)
            theirs.copy_(start.flatten(1))
        ours.grad = torch.randn(6, 3, 2, 2, generator=generator)
        theirs.grad = ours.grad.flatten(1).clone()
        muon.step()
        reference.step()
        moved = (theirs - start.flatten(1)).norm()
        assert (ours.flatten(1) - theirs).norm() < 0.02 * moved  # theirs computes in bfloat16


def test_filters_keep_their_length_and_all_else_is_trained_by_sgd() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(ConvNorm(3, 8), nn.Flatten(), nn.Linear(8 * 16, 2))
    twin = nn.Sequential(ConvNorm(3, 8), nn.Flatten(), nn.Linear(8 * 16, 2))
    twin.load_state_dict(net.state_dict())
    settings = {"lr": 0.01, "schedule": "constant", "momentum": 0.9, "nesterov": True, "norm_lr_scale": 4.0}
    muon, _ = Optimization(algorithm="muon", **settings).build(net, 10)  # type: ignore[arg-type]
    sgd, _ = Optimization(algorithm="sgd", **settings).build(twin, 10)  # type: ignore[arg-type]
    for _ in range(3):
        for mine, other in zip(net.parameters(), twin.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape)
            other.grad = mine.grad.clone()
        muon.step()
        sgd.step()
    for (name, mine), other in zip(net.named_parameters(), twin.parameters(), strict=True):
        if name == "0.0.weight":
            assert not torch.allclose(mine, other)
            assert mine.norm().item() == pytest.approx(8**0.5, rel=0.05)
        else:
            torch.testing.assert_close(mine, other, msg=name)


def test_muon_learns_and_goes_on_from_its_state() -> None:
    """The closure is called, and a copy that is given the state takes the same next step."""

    def made() -> tuple[nn.Conv2d, Muon]:
        torch.manual_seed(1)
        net = nn.Conv2d(3, 4, 3)
        groups = [{"params": [net.weight], "orthogonal": True}, {"params": [net.bias], "orthogonal": False}]
        return net, Muon(groups, lr=0.05, momentum=0.6)

    images, wanted = torch.randn(8, 3, 8, 8), nn.Conv2d(3, 4, 3)
    target = (wanted(images) / wanted.weight.norm() * 2).detach()
    net, muon = made()

    def closure() -> torch.Tensor:
        muon.zero_grad()
        loss = (net(images) - target).square().mean()
        loss.backward()
        return loss

    first = closure().item()
    for _ in range(30):
        muon.step(closure)
    assert muon.step(closure).item() < 0.2 * first
    other, copied = made()
    other.load_state_dict(net.state_dict())
    copied.load_state_dict(copy.deepcopy(muon.state_dict()))
    closure()
    for parameter, twin in zip(net.parameters(), other.parameters(), strict=True):
        twin.grad = None if parameter.grad is None else parameter.grad.clone()
    muon.step()
    copied.step()
    assert torch.equal(net.weight, other.weight) and torch.equal(net.bias, other.bias)  # type: ignore[arg-type]
