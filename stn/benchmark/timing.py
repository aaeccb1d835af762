"""Arms of a comparison, timed in turns in one run, so that what slows the machine slows them alike."""

import math
import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles

import torch

SHORTEST = 0.02  # seconds: what is over sooner is called so often that the clock and the scheduler do not matter


def interleaved(arms: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds a call of each arm takes, once in every one of `rounds` rounds, after a call that warms it up."""
    calls = {name: warmed_up(arm, device) for name, arm in arms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds):
        names = list(arms)
        # Each arm comes after every other one in turn.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds[name].append(timed(arms[name], calls[name], device))
    return seconds


def warmed_up(arm: Callable[[], object], device: torch.device) -> int:
    """How many calls of `arm` are long enough to be timed."""
    timed(arm, 1, device)
    return max(1, math.ceil(SHORTEST / timed(arm, 1, device)))


def timed(arm: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds a call of `arm` takes, the mean of `calls`."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        arm()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(numerator: list[float], denominator: list[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile of the ratio of two arms, round by round."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return median(ratios), low, high
