import math
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from stn.layers import ConvLocalization, SpatialTransformer
from stn.optimization import Optimization


def network() -> nn.Sequential:
    localization = ConvLocalization(channels=[4], kernels=[3], hidden=8)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return nn.Sequential(OrderedDict(transformer=SpatialTransformer(localization), classifier=body))


def make(**changes: Any) -> Optimization:
    return Optimization(**{"algorithm": "sgd", "lr": 0.1, "schedule": "constant"} | changes)


@pytest.mark.parametrize("algorithm", ["sgd", "muon"])
def test_each_parameter_is_in_the_group_it_belongs_to(algorithm: str) -> None:
    net = network()
    settings = {"algorithm": algorithm, "momentum": 0.9, "nesterov": True}
    groups = make(weight_decay=0.5, localization_lr_scale=0.01, norm_lr_scale=8.0, **settings).groups(net)
    found = {
        name: (group["lr"], group["weight_decay"])
        for group in groups
        for name, parameter in net.named_parameters()
        if any(parameter is member for member in group["params"])
    }
    assert len(found) == sum(len(group["params"]) for group in groups) == len(list(net.parameters()))
    for name, (lr, decay) in found.items():
        decayed = name.endswith(".weight") and "head" not in name and name != "classifier.1.weight"
        decayed &= algorithm != "muon" or name != "classifier.0.weight"  # which keep their length
        assert lr == (0.001 if name.startswith("transformer") else 0.8 if name.startswith("classifier.1") else 0.1), (
            name
        )
        assert decay == (0.5 if decayed else 0), name


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.1] * 11),
        ("cosine", [0.05 * (1 + math.cos(math.pi * step / 10)) for step in range(11)]),
    ],
)
def test_schedule_by_step(schedule: str, expected: list[float]) -> None:
    optimizer, scheduler = make(schedule=schedule).build(network(), steps=10)
    rates = []
    for _ in range(11):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected, abs=1e-9)


def test_one_cycle_peaks_after_the_warmup_and_ends_near_nothing() -> None:
    optimizer, scheduler = make(schedule="one_cycle", warmup=0.3, localization_lr_scale=0.1).build(network(), steps=100)
    rates = []
    for _ in range(100):
        rates.append(sorted({group["lr"] for group in optimizer.param_groups}))
        optimizer.step()
        scheduler.step()
    highest = [max(pair) for pair in rates]
    assert highest.index(max(highest)) == 29
    assert max(highest) == pytest.approx(0.1)
    assert highest[-1] < 1e-5
    assert all(low == pytest.approx(high / 10) for low, high in rates)


@pytest.mark.parametrize(("algorithm", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_algorithm(algorithm: str, kind: type) -> None:
    optimizer, _ = make(algorithm=algorithm, momentum=0.9, nesterov=True).build(network(), steps=2)
    assert type(optimizer) is kind
    if algorithm == "sgd":
        assert all(group["momentum"] == 0.9 and group["nesterov"] for group in optimizer.param_groups)


@pytest.mark.parametrize("algorithm", ["sgd", "adamw"])
def test_fused_unless_told_otherwise_or_clipped(algorithm: str) -> None:
    for changes, clipped, expected in (({}, False, True), ({"fused": False}, False, False), ({}, True, False)):
        optimizer, _ = make(algorithm=algorithm, **changes).build(network(), steps=2, clipped=clipped)
        assert optimizer.defaults["fused"] is expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lr": 0.0}, "lr must be above 0 and finite, not 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more, and finite, not -1.0"),
        ({"localization_lr_scale": -2.0}, "localization_lr_scale must be 0 or more, and finite, not -2.0"),
        ({"norm_lr_scale": -0.5}, "norm_lr_scale must be 0 or more, and finite, not -0.5"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), not 1.0"),
        ({"nesterov": True}, "nesterov=True needs a momentum above 0"),
        ({"filter_lr_scale": -0.5}, "filter_lr_scale must be 0 or more, and finite, not -0.5"),
        ({"algorithm": "muon"}, "algorithm=muon needs nesterov=True"),
        ({"filter_lr_scale": 0.5}, "filter_lr_scale=0.5 is for algorithm=muon, not sgd"),
        ({"warmup": 0.0}, "warmup must be above 0 and below 1, not 0.0"),
    ],
)
def test_values_out_of_range_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(**changes)


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 11])
@pytest.mark.parametrize("warmup", [0.1, 0.2, 0.5, 0.9])
def test_one_cycle_of_any_length(steps: int, warmup: float) -> None:
    optimizer, scheduler = make(schedule="one_cycle", warmup=warmup).build(network(), steps=steps)
    for _ in range(steps):
        assert 0 < scheduler.get_last_lr()[0] <= 0.1 + 1e-9
        optimizer.step()
        scheduler.step()
