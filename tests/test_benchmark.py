"""python -m stn.benchmark, on images small enough to be done at once."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from stn.benchmark import __main__ as benchmark
from stn.benchmark import layers
from stn.benchmark.timing import interleaved, ratio
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
    assert found["machine"]["torch"] == torch.__version__
    rows: list[dict[str, Any]] = found["rows"]
    assert {row["images"] for row in rows} == {"2 × 3 × 8 × 8", "1 × 3 × 12 × 10"}
    assert {(row["warp"], row["peer"]) for row in rows if row["peer"] != "copy"} == {
        ("Affine", "F.affine_grid + F.grid_sample"),
        ("Affine", "kornia.warp_affine"),
        ("Projective", "kornia.homography_warp"),
        ("ThinPlateSpline", "kornia.warp_image_tps"),
    }
    assert sum(row["peer"] == "copy" for row in rows) == 2 * len(layers.FAMILIES)
    assert all(row["stn (ms)"] > 0 and row["peer / stn"] > 0 for row in rows)
    table = (folder / "layers.md").read_text()
    assert table.count("\n| ") == len(rows) + 1 and "kornia.homography_warp" in table
    assert (folder / "layers.png").stat().st_size > 10_000
    assert "kornia.homography_warp" in capsys.readouterr().out


@pytest.mark.parametrize("family", [Affine, Projective, ThinPlateSpline])
def test_the_peers_do_the_same(family: Any) -> None:
    """A faster way to something else would be no comparison; kornia's spline has its kernels elsewhere."""
    warp, images = family(), torch.rand(3, 3, 16, 20)
    warped, theta = layers.ours(warp, images)
    for name, (peer, parameters) in layers.peers(warp, images).items():
        within = 0.15 if "tps" in name else 1e-4
        assert (peer(parameters) - warped(theta)).abs().mean() < within, name


def test_arms_take_turns_as_often_as_each_other() -> None:
    calls: list[str] = []
    arms = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = interleaved(arms, 3, torch.device("cpu"))
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    turns = "".join(calls)
    assert turns.index("b") < turns.rindex("a") and turns.rindex("b") > turns.index("a")


def test_a_ratio_is_taken_round_by_round() -> None:
    assert ratio([2, 20, 3], [1, 10, 1]) == (2, 2, 2.5)
    assert ratio([3], [2]) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["layers", "--rounds", "0"], "--rounds must be 1 or more, not 0"),
        (["layers", "--device", "nonsense"], "--device nonsense cannot be used"),
        (["nonsense"], "invalid choice: 'nonsense'"),
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
