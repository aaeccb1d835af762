"""Optimizer and schedule, with a separate learning rate for the transformers."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn, optim

from stn.layers import transformers
from stn.muon import Muon


@dataclass(frozen=True)
class Optimization:
    """How a network is trained.

    algorithm: "sgd"; "adamw"; or "muon", which trains the convolutions' filters by Muon, and the rest, the transformers
        included, by SGD with Nesterov momentum.
    lr: the highest learning rate.
    schedule: "constant"; "cosine", from lr to 0; or "one_cycle", which rises for the first `warmup` of the steps, then
        falls to 0.
    warmup: the share of the steps in which "one_cycle" rises.
    momentum: of SGD and Muon.
    nesterov: whether the momentum looks ahead (Nesterov), of SGD and Muon.
    weight_decay: acts on weights of two or more dimensions, but not on filters trained by Muon. It spares the last
        layers of the transformers, because decay would pull θ to 0, not to the identity.
    localization_lr_scale: multiplies lr for everything within a spatial transformer.
    norm_lr_scale: multiplies lr for batch norms outside the transformers (K. Jordan 2024, section 3.4, has 64).
    filter_lr_scale: multiplies lr for the filters trained by Muon.
    fused: updates all weights by one operation, with SGD or AdamW.
    Raises ValueError for values out of range.
    """

    algorithm: Literal["sgd", "adamw", "muon"]
    lr: float
    schedule: Literal["constant", "cosine", "one_cycle"]
    weight_decay: float = 0.0
    localization_lr_scale: float = 1.0
    norm_lr_scale: float = 1.0
    filter_lr_scale: float = 1.0
    momentum: float = 0.0
    nesterov: bool = False
    warmup: float = 0.2
    fused: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be above 0 and finite, not {self.lr}")
        for name in ("weight_decay", "localization_lr_scale", "norm_lr_scale", "filter_lr_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, and finite, not {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), not {self.momentum}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=True needs a momentum above 0")
        if self.algorithm == "muon" and not self.nesterov:
            raise ValueError("algorithm=muon needs nesterov=True")
        if self.algorithm != "muon" and self.filter_lr_scale != 1:
            raise ValueError(f"filter_lr_scale={self.filter_lr_scale} is for algorithm=muon, not {self.algorithm}")
        if not 0 < self.warmup < 1:
            raise ValueError(f"warmup must be above 0 and below 1, not {self.warmup}")

    def groups(self, net: nn.Module) -> list[dict[str, Any]]:
        """The trainable parameters in groups with `name`, `lr`, `weight_decay` and `orthogonal`, true for Muon."""
        modules = transformers(net)
        heads = {parameter for module in modules.values() for parameter in module.head.parameters()}
        # A shared localization has parameters of the classifier, which train at the classifier's rate.
        prefixes = tuple(f"{name}." if name else "" for name in modules)
        every = net.named_parameters(remove_duplicate=False)
        shared = {parameter for name, parameter in every if not name.startswith(prefixes)}
        localization = {p for module in modules.values() for p in module.parameters()} - shared
        norms = {p for module in net.modules() if isinstance(module, nn.BatchNorm2d) for p in module.parameters()}
        filters = {module.weight for module in net.modules() if isinstance(module, nn.Conv2d)} - localization
        scales = {
            "weights": 1.0,
            "localization": self.localization_lr_scale,
            "filters": self.filter_lr_scale,
            "norms": self.norm_lr_scale,
        }
        groups: dict[str, dict[str, Any]] = {}
        for parameter in net.parameters():
            if not parameter.requires_grad:
                continue
            if parameter in localization:
                kind = "localization"
            elif self.algorithm == "muon" and parameter in filters:
                kind = "filters"
            else:
                kind = "norms" if parameter in norms else "weights"
            decays = self.weight_decay > 0 and parameter.ndim > 1 and parameter not in heads and kind != "filters"
            group = {
                "name": f"{kind}_decayed" if decays else kind,
                "lr": self.lr * scales[kind],
                "weight_decay": self.weight_decay if decays else 0.0,
                "orthogonal": kind == "filters",
            }
            groups.setdefault(str(group["name"]), group | {"params": []})["params"].append(parameter)
        return list(groups.values())

    def is_fused(self, clipped: bool) -> bool:
        """Whether the optimizer is fused. Not if gradients are `clipped`: Lightning forbids both in mixed precision."""
        return self.fused and self.algorithm != "muon" and not clipped

    def build(
        self, net: nn.Module, steps: int, *, clipped: bool = False
    ) -> tuple[optim.Optimizer, optim.lr_scheduler.LRScheduler]:
        """The optimizer of `net` and its schedule, of which `step()` is called after each of `steps` steps.

        clipped: whether the gradients are clipped.
        """
        groups, fused = self.groups(net), self.is_fused(clipped)
        optimizer: optim.Optimizer
        if self.algorithm == "sgd":
            optimizer = optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, fused=fused)
        elif self.algorithm == "muon":
            optimizer = Muon(groups, lr=self.lr, momentum=self.momentum)
        else:
            optimizer = optim.AdamW(groups, lr=self.lr, fused=fused)
        if self.schedule == "one_cycle":
            highest = [group["lr"] for group in groups]
            steps = max(steps, math.ceil(2 / self.warmup))  # OneCycleLR divides by (warmup steps - 1)
            return optimizer, optim.lr_scheduler.OneCycleLR(
                optimizer, highest, total_steps=steps, pct_start=self.warmup, cycle_momentum=False
            )
        if self.schedule == "cosine":
            return optimizer, optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return optimizer, optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
