"""python -m stn.benchmark, on images small enough to be done at once."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import server, started

from stn.benchmark import __main__ as benchmark
from stn.benchmark import accuracy, data, export, layers, scaling, start, threads, train
from stn.benchmark.timing import interleaved, ratio, timed
from stn.errors import InputError
from stn.layers import Affine, Projective, ThinPlateSpline


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    """The exit code of the command with the arguments given, in `folder`."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["stn.benchmark", *arguments])
    try:
        benchmark.main()
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code
    return 0


def test_layers_leaves_a_table_its_figures_and_a_plot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(layers, "SIZES", ((2, 3, 8, 8), (1, 3, 12, 10)))
    monkeypatch.setattr("stn.benchmark.timing.SHORTEST", 1e-6)
    assert run(monkeypatch, tmp_path, "layers", "--rounds", "2") == 0
    (folder,) = tmp_path.glob("outputs/*/*-benchmark-layers")
    found = json.loads((folder / "layers.json").read_text())
    assert torch.__version__.startswith(found["versions"]["torch"]) and {"machine", "commit", "command"} <= found.keys()
    rows: list[dict[str, Any]] = found["rows"]
    assert {row["images"] for row in rows} == {"2×3×8×8", "1×3×12×10"}
    assert {(row["warp"], row["peer"]) for row in rows if row["peer"] != "copy"} == {
        ("Affine", "torch affine_grid + grid_sample"),
        ("Affine", "torch grid_sample alone"),
        ("Affine", "kornia warp_affine"),
        ("Projective", "kornia homography_warp"),
        ("ThinPlateSpline", "kornia warp_image_tps"),
    }
    assert sum(row["peer"] == "copy" for row in rows) == 2 * len(layers.FAMILIES)
    assert all(row["stn (ms)"] > 0 and row["peer / stn"] > 0 for row in rows)
    table = (folder / "layers.md").read_text()
    assert table.count("\n| ") == len(rows) and "kornia homography_warp" in table
    assert (folder / "layers.png").stat().st_size > 10_000
    assert "kornia homography_warp" in capsys.readouterr().out


SMALL = ["model=convnet_small", "data=shapes", "data.train_images=60", "data.test_images=20", "data.val_fraction=0.2"]
SMALL += ["data.batch_size=20"]
QUIET = ["callbacks=minimal", "logger=none"]


CPU = torch.device("cpu")
ARMS = ["stn.train", "bare loop", "bare loop, no transformer"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every benchmark done at once, its processes forked by the server of the tests, which has imported everything."""
    monkeypatch.setattr("multiprocessing.get_context", lambda method: server)

    def forked(arguments: list[str]) -> None:
        if arguments[0] == "-c":
            return exec(arguments[1], {})
        assert arguments[0] == "-m"
        (tmp_path / "start").mkdir(exist_ok=True)
        process = started(tmp_path / "start", arguments[1].removeprefix("stn."), tuple(arguments[2:]))
        process.join()
        assert process.exitcode == 0

    monkeypatch.setattr(start, "run", forked)
    monkeypatch.setattr("stn.benchmark.timing.SHORTEST", 1e-6)
    cases = {"LeNet-5 STN": ["experiment=eva7_nemani", *SMALL, *QUIET], "default": SMALL}
    for module in (train, data, accuracy, threads):
        monkeypatch.setattr(module, "CASES", cases)
    monkeypatch.setattr(start, "interleaved", lambda arms, *_: {name: [timed(arms[name], 1, CPU)] for name in arms})
    monkeypatch.setattr(export, "NETWORKS", {"small": ["model=convnet_small"]})
    for module in (train, accuracy):
        monkeypatch.setattr(module, "WORKERS", (0,))
        monkeypatch.setattr(module, "TUTORIAL_IMAGES", 40)
    monkeypatch.setattr(data, "IMAGES", 500)
    monkeypatch.setattr(scaling, "GROWN", {"batch": (1024,), "transformers": (0,)})
    monkeypatch.setattr(scaling, "START", scaling.Setting(batch=1024, images=1024, size=20))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("arguments", "column", "expected"),
    [
        (["train"], "arm", [*ARMS, "tutorial's loop, 0 workers", *ARMS]),
        (["data"], "beside", ["torchvision, one by one, in one process", "an epoch: LeNet-5 STN", "an epoch: default"]),
        (
            ["accuracy", *SMALL[1:], "model.classifier.widths=[8,8,8]", "trainer.max_epochs=1"],
            "what",
            ["the tutorial's loop, 50 epochs", "fast85", "fast94"],
        ),
        (["scaling"], "grows", ["batch", "transformers"]),
        (["threads"], "network", ["LeNet-5 STN", "default"]),
        (["start"], "what", [start.FIRST_BATCH, "stn.train --help", "import torch", "import pytorch_lightning"]),
        (["export"], "runtime", ["torch", "torchscript", "pt2", "onnxruntime"] * 2),
    ],
    ids=["train", "data", "accuracy", "scaling", "threads", "start", "export"],
)
def test_every_benchmark_leaves_its_rows_and_a_plot(
    arguments: list[str], column: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run(monkeypatch, tmp_path, *arguments, "--rounds", "1") == 0
    (folder,) = tmp_path.glob("outputs/*/*-benchmark-*")
    rows = json.loads((folder / f"{arguments[0]}.json").read_text())["rows"]
    if arguments[0] == "accuracy":  # one row for each goal that was reached, besides
        rows = [row for row in rows if row["to"] in ("", "the end")]
    assert [row[column] for row in rows] == expected
    assert all(row.get("images/s", row.get("seconds")) > 0 for row in rows)
    assert (folder / f"{arguments[0]}.png").stat().st_size > 10_000


def test_a_start_is_that_of_a_python_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    start.run(["-c", "import sys; assert 'torch' not in sys.modules; print('not shown')"])
    assert not capfd.readouterr().out
    with pytest.raises(subprocess.CalledProcessError):
        start.run(["-c", "raise SystemExit(1)"])


@pytest.mark.usefixtures("small")
def test_all_keeps_what_is_quick_by_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(layers, "SIZES", ((1, 3, 8, 8),))
    monkeypatch.setattr(layers, "FAMILIES", (Affine,))
    monkeypatch.setattr(benchmark, "QUICK", {"layers": 1, "data": 1})
    assert run(monkeypatch, tmp_path, "all") == 0
    (path,) = tmp_path.glob("results/benchmarks/*.json")
    found = json.loads(path.read_text())
    assert list(found["benchmarks"]) == ["layers", "data"] and found["benchmarks"]["data"][0]["images/s"] > 0
    assert f"{found['machine']['cores']}-cores" in path.name and {"commit", "versions"} <= found.keys()


@pytest.mark.parametrize("family", [Affine, Projective, ThinPlateSpline])
def test_the_peers_do_the_same(family: Any) -> None:
    """A faster way to something else would be no comparison; kornia's spline has its kernels elsewhere."""
    warp, images = family(), torch.rand(3, 3, 16, 20)
    warped, theta = layers.ours(warp, images)
    for name, (peer, parameters) in layers.peers(warp, images).items():
        within = 0.15 if "tps" in name else 1e-4
        assert (peer(parameters) - warped(theta)).abs().mean() < within, name


def test_arms_take_turns_as_often_as_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stn.benchmark.timing.SHORTEST", 0)
    calls: list[str] = []
    arms = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = interleaved(arms, 3, torch.device("cpu"))
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert "".join(calls) == "aabb" + "ab" + "ba" + "ab"


def test_a_ratio_is_taken_round_by_round() -> None:
    assert ratio([2, 20, 3], [1, 10, 1]) == (2, 2, 2.5)
    assert ratio([3], [2]) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["layers", "--rounds", "0"], "--rounds must be 1 or more, not 0"),
        (["layers", "--device", "nonsense"], "--device nonsense cannot be used"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["layers", "seed=1"], "layers takes no settings of stn.train, such as seed=1"),
    ],
)
def test_what_cannot_be_measured_is_named(
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, tmp_path, *arguments) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("trainer.precision=bf16-true", "the bare loop trains in 32-true or bf16-mixed, not bf16-true"),
        ("+trainer.gradient_clip_val=1.0", "the bare loop clips no gradients: leave trainer.gradient_clip_val=1.0 out"),
    ],
)
def test_what_the_bare_loop_lacks_is_named(
    setting: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, "train", setting) == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("what", ["train", "data", "accuracy"])
def test_data_that_cannot_be_trained_on_is_named(
    what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, what, *SMALL[1:-1], "data.batch_size=1000") == 2
    assert "batch_size 1000 is larger than the training set" in capsys.readouterr().err


@pytest.mark.parametrize("case", train.CASES.values(), ids=train.CASES)
def test_the_cases_are_configs(case: list[str]) -> None:
    for setting in ("seed=1", "model.placement=none"):
        with train.composed([*case, setting]) as config:
            assert config.data.train_images > config.data.batch_size


@pytest.mark.usefixtures("small")
def test_each_round_has_a_seed_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(accuracy, "run", lambda config: seeds.append(config.seed) or ([(1.0, 0.5)], 0.5))
    list(accuracy.measure(2, torch.device("cpu"), [*SMALL[1:], "seed=5"]))
    assert seeds == [0, 1, 0, 1]


@pytest.mark.usefixtures("small")
def test_a_run_that_is_never_validated_is_named() -> None:
    with pytest.raises(InputError, match=r"trainer\.check_val_every_n_epoch=9 must be at most trainer\.max_epochs="):
        list(accuracy.measure(1, torch.device("cpu"), [*SMALL[1:], "trainer.check_val_every_n_epoch=9"]))


@pytest.mark.usefixtures("small")
def test_epochs_without_validation_reach_no_goal() -> None:
    every_other = ["trainer.check_val_every_n_epoch=2", "trainer.max_epochs=5"]
    with train.composed([*SMALL, *QUIET, *every_other]) as config:
        assert len(accuracy.run(config)[0]) == 2


def test_an_interrupted_benchmark_keeps_what_it_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*arguments: Any) -> Iterator[dict[str, Any]]:
        yield {"grows": "batch", "to": 32, "images/s": 7.0, "memory (MiB)": 1.0}
        raise KeyboardInterrupt

    monkeypatch.setattr(scaling, "measure", interrupted)
    assert run(monkeypatch, tmp_path, "scaling") == 130
    (folder,) = tmp_path.glob("outputs/*/*-benchmark-scaling")
    assert json.loads((folder / "scaling.json").read_text())["rows"][0]["images/s"] == 7
    assert (folder / "scaling.png").is_file()


def test_a_case_leaves_the_data_to_whoever_names_it() -> None:
    case = ["experiment=eva7_nemani", "data=shapes", "data.train_images=60"]
    assert train.settings(case, ["data=image_folder", "data.root=here"]) == ["experiment=eva7_nemani"]
    assert train.settings(case, ["data.train_images=80"]) == case


@pytest.mark.parametrize("what", ["train", "data", "accuracy"])
def test_a_setting_that_cannot_be_meant_is_named(
    what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, what, "data.batchsize=1") == 2
    assert "data has no key 'batchsize'; did you mean 'batch_size'?" in capsys.readouterr().err
    assert not list(tmp_path.glob("outputs/*/*"))
