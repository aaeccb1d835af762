"""Whether two groups of figures differ by more than their spread explains: t-tests, and Holm's correction."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

TERMS = 200  # of the continued fraction; a few are enough for the few figures of a comparison


def compare(one: Mapping[int, float], other: Mapping[int, float]) -> tuple[str, float | None]:
    """The test that suits two groups of figures by seed, in words, and its two-sided p-value, None without a test.

    Paired if both have the same seeds, at least three; Welch's if both have at least two.
    """
    if min(len(one), len(other)) < 2:
        return "too few seeds", None
    if one.keys() == other.keys() and len(one) > 2:
        differences = [one[seed] - other[seed] for seed in one]
        return _named("paired t-test", paired_t(differences), len(one) - 1)
    return _named("Welch's t-test", *welch_t(list(one.values()), list(other.values())))


def p_in_words(p: float) -> str:
    """A p-value as tables show it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _named(test: str, t: float, freedom: float) -> tuple[str, float | None]:
    return (test, two_sided(t, freedom)) if math.isfinite(t) else ("no spread to test against", None)


def paired_t(differences: Sequence[float]) -> float:
    """Student's t of some differences; it is not finite if they are all the same."""
    return _ratio(fmean(differences), stdev(differences) / math.sqrt(len(differences)))


def welch_t(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Welch's t of two groups, and its degrees of freedom; t is not finite if neither group has a spread."""
    errors = [stdev(values) ** 2 / len(values) for values in (one, other)]
    t = _ratio(fmean(one) - fmean(other), math.sqrt(sum(errors)))
    if not math.isfinite(t):
        return t, math.nan
    parts = [error**2 / (len(values) - 1) for error, values in zip(errors, (one, other), strict=True)]
    return t, sum(errors) ** 2 / sum(parts)


def _ratio(difference: float, error: float) -> float:
    """Their ratio, NaN where the error is but rounding."""
    return difference / error if error > 1e-12 and error > 1e-9 * abs(difference) else math.nan


def two_sided(t: float, freedom: float) -> float:
    """The probability of a value as far from 0 as t, or farther, under Student's t distribution."""
    return incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function, by its continued fraction (DLMF 8.17.22)."""
    if x in (0, 1):
        return float(x)
    if x > (a + 1) / (a + b + 2):  # where the fraction of the complement converges faster
        return 1 - incomplete_beta(1 - x, b, a)
    fraction = 1.0
    for term in range(TERMS, 0, -1):
        m, odd = divmod(term, 2)
        part = -(a + m) * (a + b + m) if odd else m * (b - m)
        fraction = 1 + part * x / ((a + term - 1) * (a + term) * fraction)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta) / (a * fraction)


def holm(values: Sequence[float]) -> list[float]:
    """p-values of several tests, each made larger so that all hold at once (Holm 1979)."""
    found, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        found[index] = largest
    return found
