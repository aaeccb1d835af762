"""Finished runs are compared: the rows, what is left out, and which differences the seeds do not explain."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from scipy import stats
from test_bad_input import refused

from stn.comparison import Comparison, compare_runs
from stn.comparison_report import cells, draw, markdown
from stn.config import compose, save
from stn.errors import InputError
from stn.figures import BLUE, GREY, VERMILION
from stn.runs import find_runs
from stn.significance import compare, holm, paired_t, two_sided, welch_t

VALUE = st.floats(0, 1).map(lambda value: round(value, 6))
VALUES = st.lists(VALUE, min_size=3, max_size=12)
NEAR = {"rel": 1e-6, "abs": 1e-12}


@given(st.lists(st.tuples(VALUE, VALUE), min_size=3, max_size=12))
def test_the_paired_test_is_scipys(pairs: list[tuple[float, float]]) -> None:
    one, other = zip(*pairs, strict=True)
    differences = [here - there for here, there in zip(one, other, strict=True)]
    if max(differences) - min(differences) < 1e-5:
        return
    expected = stats.ttest_rel(one, other)
    assert paired_t(differences) == pytest.approx(expected.statistic, **NEAR)
    test, p = compare(dict(enumerate(one)), dict(enumerate(other)))
    assert test == "paired t-test" and p == pytest.approx(expected.pvalue, **NEAR)


@given(VALUES, VALUES)
def test_the_unpaired_test_is_scipys(one: list[float], other: list[float]) -> None:
    if max(one) - min(one) + max(other) - min(other) < 1e-5:
        return
    expected = stats.ttest_ind(one, other, equal_var=False)
    t, freedom = welch_t(one, other)
    assert (t, freedom) == pytest.approx((expected.statistic, expected.df), **NEAR)
    test, p = compare(dict(enumerate(one)), {100 + seed: value for seed, value in enumerate(other)})
    assert test == "Welch's t-test" and p == pytest.approx(expected.pvalue, **NEAR)


@given(st.floats(-1e3, 1e3), st.floats(1, 500))
def test_the_tails_of_the_distribution_are_scipys(t: float, freedom: float) -> None:
    assert two_sided(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), rel=1e-6, abs=1e-300)


def test_without_enough_seeds_or_a_spread_there_is_no_test() -> None:
    assert compare({1: 0.5}, {1: 0.4, 2: 0.5, 3: 0.6}) == ("too few seeds", None)
    assert compare({1: 0.5, 2: 0.6, 3: 0.7}, {1: 0.4, 2: 0.5, 3: 0.6}) == ("no spread to test against", None)
    assert compare({1: 0.5, 2: 0.5}, {1: 0.4, 2: 0.4}) == ("no spread to test against", None)


def test_the_correction_of_holm_is_that_worked_by_hand() -> None:
    # Sorted: 4 * 0.005, 3 * 0.01, 2 * 0.03, and 1 * 0.04, which may not be below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1] and holm([]) == []


Write = Callable[..., Path]


@pytest.fixture(scope="module")
def base() -> DictConfig:
    return compose(["data=shapes", "model=convnet_small", "tta=none"], "unused")


@pytest.fixture
def write(base: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the folder of a run as training leaves it, with some keys of its config and some metrics."""
    monkeypatch.chdir(tmp_path)
    count = iter(range(1000))

    def run(name: str, keys: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **metrics: Any) -> Path:
        folder, config = Path(name), base.copy()
        for key, value in {"folder": name, **(keys or {})}.items():
            OmegaConf.update(config, key, value, force_add=True)
        save(config, folder / "config.yaml")
        found = {"parameters": 1234, "epochs": 2, "seconds": 10.0, **metrics}
        (folder / "metrics.json").write_text(json.dumps(found))
        when = {"date": f"2026-11-24T12:{next(count):02}:00+00:00", "commit": "abc"}
        (folder / "environment.json").write_text(json.dumps(when | ({"data": data} if data else {})))
        return folder

    return run


def compared(*words: str, **options: Any) -> Comparison:
    return compare_runs(find_runs(words), **options)


TPS = {"model.warp": {"_target_": "stn.layers.ThinPlateSpline", "size": 4}}


def test_rows_are_settings_and_their_runs_are_seeds(write: Write) -> None:
    for seed in (1, 2, 3):
        keys = {"seed": seed, "threads": seed, "callbacks.warps.images": seed, "data.cache": f"cache{seed}"}
        write(f"sweep/{seed}", keys, test_accuracy=0.9 + seed / 100)
        write(f"sweep/1{seed}", TPS | keys, test_accuracy=0.8 + seed / 50)
    found = compared("sweep")
    assert [dict(row.settings) for row in found.rows] == [{"model.warp": "Affine"}, {"model.warp": "ThinPlateSpline"}]
    assert [row.name for row in found.rows] == ["warp=Affine", "warp=ThinPlateSpline"]
    best, other = found.rows
    assert best.values == {1: 0.91, 2: 0.92, 3: 0.93} and best.runs[2] == "sweep/2"
    assert other.mean == pytest.approx(0.84) and other.deviation == pytest.approx(0.02)
    assert other.difference == pytest.approx(-0.08) and (best.parameters, best.seconds) == (1234, 10)
    expected = stats.ttest_rel([0.91, 0.92, 0.93], [0.82, 0.84, 0.86]).pvalue
    assert other.test == "paired t-test" and other.p == pytest.approx(expected)
    assert found.conclusion() == "warp=Affine is better than every other row by more than the seeds explain (p < 0.05)."


def test_settings_that_follow_from_a_class_do_not_hide_others(write: Write) -> None:
    write("a", test_accuracy=0.5)
    write("b", TPS, test_accuracy=0.6)
    write("c", {"model.warp": {"_target_": "stn.layers.ThinPlateSpline", "size": 5}}, test_accuracy=0.7)
    assert [row.name for row in compared("a", "b", "c").rows] == [
        "warp=ThinPlateSpline size=5",
        "warp=ThinPlateSpline size=4",
        "warp=Affine size=–",
    ]


def test_classes_of_the_same_name_are_told_apart(write: Write) -> None:
    write("a", {"model.warp._target_": "mine.Affine"}, test_accuracy=0.5)
    write("b", test_accuracy=0.6)
    assert [row.name for row in compared("a", "b").rows] == ["warp=stn.layers.Affine", "warp=mine.Affine"]


@pytest.mark.parametrize("name", ["transformer", "window"])
def test_arms_name_the_rows_and_give_an_answer(write: Write, name: str) -> None:
    accuracies = {"plain": (0.70, 0.71, 0.72), name: (0.80, 0.81, 0.83), "ceiling": (0.84, 0.85, 0.86)}
    for arm, values in accuracies.items():
        for seed, value in enumerate(values):
            keys = {"arm": arm, "seed": seed, "model.placement": "input" if arm == name else "none"}
            write(f"{arm}{seed}", keys, test_accuracy=value)
    found = compared("*")
    assert [row.name for row in found.rows] == ["arm=ceiling", f"arm={name}", "arm=plain"]
    p = stats.ttest_rel((0.80, 0.81, 0.83), (0.70, 0.71, 0.72)).pvalue
    answer = found.answer()
    assert answer is not None and answer in markdown(found)
    assert answer.startswith("The transformer wins 10.3 of the 14.0 points that undoing the true pose would give ")
    assert f"(+10.3 points, p = {p:.2g}, against the network without it)" in answer


def test_an_answer_beyond_the_ceiling_or_without_a_difference(write: Write) -> None:
    accuracies = {"plain": (0.80, 0.81, 0.82), "transformer": (0.90, 0.91, 0.93), "ceiling": (0.85, 0.86, 0.87)}
    for arm, values in accuracies.items():
        for seed, value in enumerate(values):
            write(f"{arm}{seed}", {"arm": arm, "seed": seed}, test_accuracy=value)
    assert str(compared("*").answer()).startswith("The transformer wins 10.3 points (+10.3 points, p = ")
    for arm in accuracies:
        for seed in range(3):
            write(f"{arm}{seed}", {"arm": arm, "seed": seed}, test_accuracy=1.0)
    assert str(compared("*").answer()).startswith(
        "The transformer makes no difference that exceeds chance (+0.0 points"
    )


def test_what_may_be_chance_is_no_gain(write: Write) -> None:
    for arm, values in {"plain": (0.70, 0.75, 0.72), "transformer": (0.73, 0.71, 0.74)}.items():
        for seed, value in enumerate(values):
            write(f"{arm}{seed}", {"arm": arm, "seed": seed}, test_accuracy=value)
    answer = str(compared("*").answer())
    assert answer.startswith("The transformer makes no difference that exceeds chance (+0.3 points, p = 0.")


def test_arms_that_differ_by_more_have_no_answer(write: Write) -> None:
    for arm, epochs, value in (("plain", 6, 0.6), ("plain", 15, 0.7), ("transformer", 6, 0.8)):
        write(f"{arm}{epochs}", {"arm": arm, "trainer.max_epochs": epochs}, test_accuracy=value)
    assert len(compared("*").rows) == 3 and compared("*").answer() is None


def test_an_answer_needs_both_arms(write: Write) -> None:
    write("one", {"arm": "plain"}, test_accuracy=0.7)
    write("two", {"arm": "wider"}, test_accuracy=0.8)
    assert compared("*").answer() is None
    write("three", {"arm": "transformer"}, test_accuracy=0.6)
    assert compared("*").answer() == (
        "One seed tells little of the transformer: -10.0 points, against the network without it."
    )
    for arm, value in (("plain", 0.7), ("transformer", 0.6)):
        write(f"{arm}-1", {"arm": arm, "seed": 1}, test_accuracy=value)
    assert str(compared("*").answer()).startswith(
        "The transformer loses 10.0 points (-10.0 points, against the network"
    )


def test_one_finished_run_is_no_comparison(write: Write) -> None:
    write("one", test_accuracy=0.7)
    write("two")
    assert compared("*").conclusion() == "Only one run counts, so nothing is compared: test accuracy 70.00%."


def test_the_correction_counts_all_rows(write: Write) -> None:
    for rate, accuracies in {0.1: (0.9, 0.91, 0.92), 0.2: (0.89, 0.915, 0.9), 0.3: (0.5, 0.54, 0.6)}.items():
        for seed, accuracy in enumerate(accuracies):
            write(f"runs/{rate}-{seed}", {"optimizer.lr": rate, "seed": seed}, test_accuracy=accuracy)
    write("runs/one", {"optimizer.lr": 0.4}, test_accuracy=0.95)
    found = compared("runs")
    raw = [stats.ttest_rel((0.9, 0.91, 0.92), values).pvalue for values in ((0.89, 0.915, 0.9), (0.5, 0.54, 0.6))]
    by_rate = {row.settings["optimizer.lr"]: row for row in found.rows}
    assert by_rate["0.2"].p == pytest.approx(max(raw[0], 2 * raw[1])) and by_rate["0.3"].p == pytest.approx(2 * raw[1])
    assert (by_rate["0.4"].p, by_rate["0.4"].test) == (None, "too few seeds")
    assert found.conclusion() == (
        "lr=0.1 is better than 1 of 3 other rows by more than the seeds explain (p < 0.05); lr=0.2 may be as good; "
        "of lr=0.4 nothing can be told."
    )
    colours = [line.get_color() for line in draw(found).axes[0].get_lines() if line.get_marker() == "|"]
    assert colours == [BLUE, VERMILION, BLUE, GREY]


def test_of_a_loss_the_lowest_is_the_best(write: Write) -> None:
    for rate in (0.1, 0.2):
        write(f"runs/{rate}", {"optimizer.lr": rate}, test_accuracy=0.5, test_loss=rate)
    found = compared("runs", by="test_loss")
    assert [row.mean for row in found.rows] == [0.1, 0.2]
    assert found.conclusion().startswith("Nothing can be concluded: a test needs at least two seeds of each setting")


@pytest.mark.parametrize(
    ("keys", "data", "said"),
    [
        ({"data.rotation": 5}, None, "data.rotation is 60.0 in a and 5 in b"),
        ({"data.root": "photos"}, None, "data.root is None in a and photos in b"),
        ({"data.mean": [0, 0, 0]}, None, "data.mean is [0.4, 0.4, 0.4] in a and [0, 0, 0] in b"),
        ({}, {"classes": ["cat"]}, "the data's classes is ['cat', 'dog'] in a and ['cat'] in b"),
        ({}, {"test_digest": "ff"}, "the data's test_digest is 00 in a and ff in b"),
    ],
)
def test_runs_on_other_data_are_refused(keys: dict[str, Any], data: dict[str, Any], said: str, write: Write) -> None:
    write("a", data={"classes": ["cat", "dog"], "test_digest": "00"}, test_accuracy=0.5)
    write("b", keys, data, test_accuracy=0.6)
    with pytest.raises(InputError) as error:
        compared("a", "b")
    assert str(error.value) == f"{said}: compare runs on the same data, or set allow_different_data=true"
    found = compared("a", "b", allow_different_data=True)
    assert f"The data differ: {said}." in found.notes and len(found.rows) == 2 and not found.left_out


def test_augmentation_is_no_difference_of_the_data(write: Write) -> None:
    write("a", test_accuracy=0.5)
    write("b", {"data.flip": True, "data.batch_size": 7}, test_accuracy=0.6)
    assert compared("a", "b").rows[0].name == "batch_size=7 flip=true"


def test_runs_on_subsets_of_the_data_are_compared(write: Write) -> None:
    write("a", {"data.subset": 50}, test_accuracy=0.5)
    write("b", {"data.subset": 500}, test_accuracy=0.6)
    assert [row.name for row in compared("a", "b").rows] == ["subset=500", "subset=50"]


@pytest.fixture
def sweep(write: Write) -> Path:
    """Two settings with two seeds, one of them trained twice, and three runs that are not finished."""
    for job, (rate, seed) in enumerate([(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2), (0.2, 2)]):
        write(f"sweep/{job}", {"optimizer.lr": rate, "seed": seed}, test_accuracy=0.5 + rate + (job + 1) ** 2 / 1000)
    write("sweep/5", epochs=3)
    for job, error in enumerate(
        ["stn.train: data: [red]no\x1b images[/red]\n\nTraceback\n", "Traceback\n  x\nKeyError: 1"]
    ):
        (Path("sweep") / str(6 + job)).mkdir()
        (Path("sweep") / str(6 + job) / "error.txt").write_text(error)
    Path("sweep/multirun.yaml").touch()
    Path("sweep/error.txt").touch()  # of an attempt to resume it as a run
    return Path("sweep")


def test_the_command_writes_one_table_in_three_formats_and_a_plot(sweep: Path, command: Command) -> None:
    done = command("sweep", verb="compare")
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    said = {
        "sweep/3": "has the settings and the seed of sweep/4, which is later",
        "sweep/5": "not finished, after 3 epochs",
        "sweep/6": "failed: data: [red]no� images[/red]",
        "sweep/7": "failed: KeyError: 1",
    }
    written = (sweep / "comparison" / "comparison.md").read_text()
    for text in (done.stdout, written):
        assert all(f"not counted: {folder}: {reason}\n" in text for folder, reason in said.items()), text
    content = json.loads((sweep / "comparison" / "comparison.json").read_text())
    assert content["not_counted"] == said and content["conclusion"] == last == written.splitlines()[-1]
    with (sweep / "comparison" / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["optimizer.lr"] for row in rows] == ["0.2", "0.1"] and content["compared_with"] == "lr=0.2"
    for row, other in zip(rows, content["rows"], strict=True):
        assert row["optimizer.lr"] == other["settings"]["optimizer.lr"]
        for name in ("mean", "lowest", "highest", "parameters", "seconds", "difference"):
            assert float(row[name]) == other[name], name
        assert row["seeds"] == other["seeds"] == "1 2" and row["p"] == ("" if other["p"] is None else str(other["p"]))
        shown = f"{other['mean']:.2%} ({other['lowest']:.2%} to {other['highest']:.2%})"
        assert f"| {row['optimizer.lr']} | 2 | {shown} |" in written
    assert content["rows"][0]["runs"] == {"1": "sweep/2", "2": "sweep/4"}
    assert (sweep / "comparison" / "comparison.png").stat().st_size > 10_000


def test_a_sweep_over_data_is_compared_and_runs_on_other_data_are_not(
    write: Write, command: Command, tmp_path: Path
) -> None:
    for job, undo in enumerate((False, True)):
        write(f"sweep/{job}", {"data.distortion.undo": undo}, test_accuracy=0.5 + job / 10)
    refused(command("sweep", verb="compare"), "data.distortion.undo is False in sweep/0", program="stn.compare")
    (tmp_path / "sweep" / "multirun.yaml").touch()
    assert command("sweep", verb="compare").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there is nothing to compare: give the folders of runs, or that of a sweep"),
        (["nowhere"], "nowhere does not exist: give folders of runs or of sweeps, or a pattern in quotes"),
        (["no*"], "no* does not exist"),
        (["empty"], "empty holds no run: give the folder of a run, or of a sweep"),
        (["latest"], "latest: there is no sweep in"),
        (
            ["sweep/5", "sweep/6"],
            "none of the 2 runs is finished, so there is nothing to compare: sweep/5 not",
        ),
        (["sweep", "by=accuracy"], "by=accuracy: no finished run has this metric as a number; did you mean"),
        (["sweep", "overwrite=perhaps"], "overwrite=perhaps must be true or false"),
        (["sweep", "output=full"], "full holds files already: set overwrite=true"),
        (["broken"], "broken/config.yaml cannot be read as the config of a run"),
    ],
)
def test_what_cannot_be_compared(arguments: list[str], said: str, sweep: Path, command: Command) -> None:
    Path("empty").mkdir()
    shutil.copytree(sweep, "full")
    shutil.copytree(sweep / "0", "broken")
    Path("broken/config.yaml").write_text("seed: ${oc.env:HOME}")
    refused(command(*arguments, verb="compare"), said, program="stn.compare")
    assert not (sweep / "comparison").exists()


def test_a_run_may_name_classes_that_are_not_looked_up(write: Write) -> None:
    write("a", {"callbacks.mine": {"_target_": "os.system", "command": "touch harm"}}, test_accuracy=0.5)
    write("b", test_accuracy=0.4)
    assert [row.name for row in compared("a", "b").rows] == ["mine=system", "mine=–"] and not Path("harm").exists()


def test_runs_are_found_by_patterns_and_in_the_order_of_their_numbers(write: Write) -> None:
    for job in (10, 2, 1):
        write(f"day/sweep/{job}", test_accuracy=0.5)
    assert find_runs(["day/*/*"]) == find_runs(["day"]) == [Path("day/sweep") / str(job) for job in (1, 2, 10)]
    assert find_runs([str(Path.cwd() / "day/sw*"), "day/sweep/2"]) == [Path.cwd() / path for path in find_runs(["day"])]


def test_a_cell_cannot_break_the_table(write: Write) -> None:
    write("a", {"model.classifier.note": "x | y"}, test_accuracy=0.5)
    write("b", test_accuracy=0.5)
    found = compared("a", "b")
    assert "| x \\| y | 1 |" in markdown(found) and len(cells(found)) == 3
