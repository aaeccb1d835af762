"""Compares finished runs: groups them by their settings, and tells which differ by more than their seeds explain."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

from stn.differences import differing_keys, short_names, shown_values, telling_keys
from stn.errors import InputError, nearest
from stn.results import spread
from stn.runs import Finished, number, other_data, read_finished, unfinished
from stn.significance import compare, holm

LOWER_IS_BETTER = r".*(loss|error|seconds|parameters|epochs|lost|restarts).*"
LEVEL = 0.05  # of p, below which a difference is more than the seeds explain


@dataclass(frozen=True)
class Row:
    """Runs that are equal but for the seed.

    settings: those in which the rows differ. name: the fewest of them that tell it apart. runs: folders by seed.
    values: the metric by seed. difference: of the mean from that of the row that this one is compared with.
    p: after Holm's correction; None without a test. test: which one it was, or why there is none; empty for the row
        that the others are compared with.
    """

    settings: Mapping[str, str]
    name: str
    runs: Mapping[int, str]
    values: Mapping[int, float]
    parameters: float | None
    seconds: float | None
    difference: float = 0.0
    test: str = ""
    p: float | None = None

    @property
    def mean(self) -> float:
        return fmean(self.values.values())

    @property
    def deviation(self) -> float | None:
        """The standard deviation of three seeds or more."""
        return stdev(self.values.values()) if len(self.values) > 2 else None


@dataclass(frozen=True)
class Comparison:
    """Rows by the mean of a metric, the best one first, and what is to be said of them.

    reference: the row that the others are compared with, the best one with two seeds or more if there is any.
    left_out: why runs do not count, by their folders.
    """

    by: str
    rows: Sequence[Row]
    reference: Row
    left_out: Mapping[str, str]
    notes: Sequence[str]

    @property
    def form(self) -> str:
        """How a value of the metric is written."""
        return ".2%" if self.by.endswith("accuracy") else ".4g"

    def conclusion(self) -> str:
        """One sentence that says what can be concluded."""
        best, others = self.reference, [row for row in self.rows if row is not self.reference]
        if not others:
            values = list(best.values.values())
            if len(values) == 1:
                return f"Only one run counts, so nothing is compared: {self.metric} {spread(values, self.form)}."
            return f"All runs have the same settings: {self.metric} {spread(values, self.form)}."
        untested = [row for row in others if row.p is None]
        beaten = [row for row in others if row.p is not None and row.p < LEVEL]
        open_rows = [row for row in others if row.p is not None and row.p >= LEVEL]
        if not beaten and not open_rows:
            return "Nothing can be concluded: a test needs at least two seeds of each setting, with different results."
        if beaten:
            rows = "every other row" if len(beaten) == len(others) else f"{len(beaten)} of {len(others)} other rows"
            said = f"{best.name} is better than {rows} by more than the seeds explain (p < {LEVEL})"
            said += f"; {listed(open_rows)} may be as good" if open_rows else ""
        else:
            said = f"No row differs from {best.name} by more than the seeds explain"
        return said + (f"; of {listed(untested)} nothing can be told." if untested else ".")

    def answer(self) -> str | None:
        """One sentence on what the transformer gains, if the rows are arms of experiment=does_it_help."""
        named = [(row.settings["arm"], row) for row in self.rows if "arm" in row.settings]
        arms = dict(named)
        if len(arms) < len(named):  # some rows share an arm and differ otherwise, such as by their distortion
            return None
        plain, found = arms.get("plain"), arms.get("transformer") or arms.get("window")
        if not plain or not found or not self.by.endswith("accuracy"):
            return None

        def points(row: Row, than: Row) -> str:
            gain = 100 * (row.mean - than.mean)
            p = compare(row.values, than.values)[1]
            return f"{gain:+.1f} points" + ("" if p is None else f", p = {p:.2g}")

        gain = 100 * (found.mean - plain.mean)
        if min(len(plain.values), len(found.values)) < 2:
            return f"One seed tells little of the transformer: {points(found, plain)}, against the network without it."
        p = compare(found.values, plain.values)[1]
        said = f"The transformer {'wins' if gain > 0 else 'loses'} {abs(gain):.1f}"
        ceiling = arms.get("ceiling")
        if gain == 0 or (p is not None and p >= LEVEL):
            said = "The transformer makes no difference that exceeds chance"
        elif ceiling and 0 < found.mean - plain.mean <= ceiling.mean - plain.mean:
            said += f" of the {100 * (ceiling.mean - plain.mean):.1f} points that undoing the true pose would give"
        else:
            said += " points"
        said += f" ({points(found, plain)}, against the network without it"
        others = [arm for arm in ("wider", "search", "labels") if arm in arms]
        said += "".join(f"; {points(found, arms[arm])}, against the arm {arm!r}" for arm in others)
        return said + ")."

    @property
    def metric(self) -> str:
        return self.by.replace("_", " ")


def listed(rows: Sequence[Row]) -> str:
    """The names of the first three rows."""
    return ", ".join(row.name for row in rows[:3]) + " …" * (len(rows) > 3)


def compare_runs(folders: Sequence[Path], by: str = "test_accuracy", allow_different_data: bool = False) -> Comparison:
    """Compares the finished ones of some runs by a metric.

    Raises InputError if none is finished, none has the metric, or, unless `allow_different_data`, their data differ.
    """
    reasons = {folder: unfinished(folder) for folder in folders}
    left_out = {str(folder): reason for folder, reason in reasons.items() if reason}
    finished = [read_finished(folder) for folder, reason in reasons.items() if not reason]
    if not finished:
        told = "; ".join(f"{folder} {reason}" for folder, reason in list(left_out.items())[:5])
        raise InputError(f"none of the {len(folders)} runs is finished, so there is nothing to compare: {told}")
    runs = [run for run in finished if number(run, by) is not None]
    if not runs:
        names = {name for run in finished for name in run.metrics if number(run, name) is not None}
        raise InputError(f"by={by}: no finished run has this metric as a number; {nearest(by, names)}")
    left_out |= {str(run.folder): f"has no {by}" for run in finished if run not in runs}
    notes = []
    if differ := other_data(runs):
        if not allow_different_data:
            raise InputError(f"{differ}: compare runs on the same data, or set allow_different_data=true")
        notes.append(f"The data differ: {differ}.")
        runs = [replace(run, settings={**run.settings, **run.data}) for run in runs]  # runs on other data share no row
    runs, repeated = latest_of_each(runs)
    left_out |= repeated
    for what, key in (("commits", "commit"), ("machines", "machine")):
        if len({str(run.environment.get(key)) for run in runs}) > 1:
            notes.append(f"The runs are of several {what}, see environment.json of each.")
    rows = rows_of(runs, by)
    reference = next((row for row in rows if len(row.values) > 1), rows[0])
    return Comparison(by, tested(rows, reference), reference, left_out, notes)


def latest_of_each(runs: Sequence[Finished]) -> tuple[list[Finished], dict[str, str]]:
    """Of runs with the same settings and seed, the one that was started last, and why the others do not count."""
    found: dict[tuple[str, int], Finished] = {}
    left_out = {}
    for run in sorted(runs, key=lambda run: str(run.environment.get("date", ""))):
        key = (str(sorted(run.settings.items())), run.seed)
        if key in found:
            left_out[str(found[key].folder)] = f"has the settings and the seed of {run.folder}, which is later"
        found[key] = run
    return list(found.values()), left_out


def rows_of(runs: Sequence[Finished], by: str) -> list[Row]:
    """The rows of runs, the best one first."""
    keys = differing_keys([run.settings for run in runs])
    columns = [shown_values([run.settings.get(key) for run in runs]) for key in keys]
    groups: dict[tuple[str, ...], list[Finished]] = defaultdict(list)
    for index, run in enumerate(runs):
        groups[tuple(column[index] for column in columns)].append(run)
    telling, names = telling_keys(keys, list(groups)), short_names(keys)
    rows = []
    for values, unsorted in groups.items():
        group = sorted(unsorted, key=lambda run: run.seed)
        settings = dict(zip(keys, values, strict=True))
        rows.append(
            Row(
                settings=settings,
                name=" ".join(f"{names[key]}={settings[key]}" for key in telling) or "all runs",
                runs={run.seed: str(run.folder) for run in group},
                values={run.seed: number(run, by) or 0.0 for run in group},
                parameters=mean_of(group, "parameters"),
                seconds=mean_of(group, "seconds"),
            )
        )
    return sorted(rows, key=lambda row: row.mean, reverse=not re.fullmatch(LOWER_IS_BETTER, by))


def mean_of(group: Sequence[Finished], name: str) -> float | None:
    """The mean of a metric over runs, None if one of them has none."""
    values = [number(run, name) for run in group]
    return fmean(value for value in values if value is not None) if None not in values else None


def tested(rows: Sequence[Row], reference: Row) -> list[Row]:
    """Rows with the test of each against the reference."""
    found = {row.name: compare(row.values, reference.values) for row in rows if row is not reference}
    corrected = iter(holm([p for _, p in found.values() if p is not None]))
    return [
        row
        if row is reference
        else replace(
            row,
            difference=row.mean - reference.mean,
            test=found[row.name][0],
            p=None if found[row.name][1] is None else next(corrected),
        )
        for row in rows
    ]
