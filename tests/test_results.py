"""Figures are quoted from the files in results/ alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import ROOT, TINY, Command
from omegaconf import DictConfig, OmegaConf
from scipy import stats
from traps import RandomStart, RoundedTheta

from stn.benchmark import page as speed_page
from stn.config import compose
from stn.errors import InputError
from stn.layers import Affine, FullyConnectedLocalization, SpatialTransformer
from stn.results import RESULTS, experiment, read_results, record
from stn.results_page import README, front_page, page, with_tables
from stn.results_tables import RECIPE, arms, changes, colocalized, digits, gains, little, traps, warp_of
from stn.training import train


def test_the_pages_are_what_the_files_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    results = read_results()
    assert (ROOT / "docs" / "results.md").read_text() == page(results), "run python -m stn.record"
    assert README.read_text() == with_tables(README, front_page(results)), "run python -m stn.record"
    assert speed_page.PAGE.read_text() == with_tables(speed_page.PAGE, speed_page.tables()), "run python -m stn.record"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("python -m stn.train data=image_folder data.root=data/cifar10", "default"),
        ("python -m stn.train experiment=fast94 seed=3 'hydra.run.dir=a run' data.root=data", "fast94"),
        ("python -m stn.train tta=none experiment=fast94 model.placement=none", "fast94,model.placement=none,tta=none"),
        ("python -m stn.train -m experiment=fast94 seed=0,1", "fast94"),
    ],
)
def test_an_experiment_is_named_by_its_settings(command: str, name: str) -> None:
    assert experiment(command) == name


@pytest.fixture
def folder(composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run, as the command would have left it."""
    train(composed(*TINY, "callbacks=minimal"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run" / "environment.json"
    found = json.loads(path.read_text()) | {"command": "python -m stn.train experiment=demo seed=0", "commit": "abc"}
    path.write_text(json.dumps(found))
    return tmp_path / "run"


def test_a_result_has_all_that_a_figure_rests_on(folder: Path) -> None:
    assert record(folder) == RESULTS / "demo" / "0.json"
    (result,) = read_results()["demo"]
    assert result["metrics"] == json.loads((folder / "metrics.json").read_text())
    assert [row["epoch"] for row in result["curve"]] == [1, 2]
    assert result["curve"][-1]["val/accuracy"] == result["metrics"]["last_val_accuracy"]
    assert result["curve"][-1].keys() == {"epoch", "train/accuracy", "train/loss", "val/accuracy", "val/loss"}
    assert result["config"]["data"]["train_images"] == 60 and result["commit"] == "abc"
    assert {"date", "machine", "versions"} <= result.keys()


def test_a_choice_of_a_group_within_a_group_is_no_folder(folder: Path) -> None:
    environment = json.loads((folder / "environment.json").read_text())
    environment["command"] += " data/distortion=none"
    (folder / "environment.json").write_text(json.dumps(environment))
    assert record(folder) == RESULTS / "demo,data-distortion=none" / "0.json"
    assert "demo,data/distortion=none" in read_results()


def test_a_run_with_a_class_from_elsewhere_is_kept(folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("stn.layers.SpatialTransformer", "traps.RandomStart"))
    record(folder)
    (result,) = read_results()["demo"]
    assert result["config"]["model"]["transformer"]["_target_"] == "traps.RandomStart"


def test_the_accuracy_by_angle_is_that_of_the_tested_images(folder: Path) -> None:
    tested = json.loads((folder / "metrics.json").read_text())["test_accuracy"]
    path, rows = folder / "evaluation" / "evaluation.json", [{"from": 0, "to": 15, "images": 20, "accuracy": 0.5}]
    path.parent.mkdir()
    for content, kept in (
        ({"split": "test", "epoch": 2, "accuracy": tested}, rows),
        ({"split": "train", "epoch": 2, "accuracy": tested}, None),
        ({"split": "test", "epoch": 1, "accuracy": tested}, None),
        ({"split": "test", "epoch": 2, "accuracy": tested + 0.01}, None),  # of other views
    ):
        # It is large where there are many classes.
        path.write_text(json.dumps(content | {"accuracy_by_angle": rows}) + " " * 2**20)
        assert json.loads(record(folder).read_text()).get("accuracy_by_angle") == kept


def test_a_result_on_other_images_is_not_overwritten(folder: Path) -> None:
    path = record(folder)
    assert record(folder) == path
    result = json.loads(path.read_text())
    result["config"]["data"] |= {"_target_": "stn.data.ImageFolderDataModule", "root": "photos"}
    path.write_text(json.dumps(result))
    with pytest.raises(InputError, match=r"0\.json is of other images than"):
        record(folder)
    assert json.loads(path.read_text()) == result


def test_what_is_no_result_is_refused(folder: Path) -> None:
    path = folder / "environment.json"
    path.write_text(path.read_text().replace("abc", "abc-dirty"))
    with pytest.raises(InputError, match=r"was trained by code of no commit \(abc-dirty\): commit it"):
        record(folder)
    path.write_text(path.read_text().replace("abc-dirty", "abc").replace("-m stn.train", "script.py"))
    with pytest.raises(InputError, match=r"was not trained by python -m stn\.train, whose settings name a result"):
        record(folder)
    environment = json.loads(path.read_text())
    for resumed, said in (
        ({"command": "python -m stn.train resume=run", "commit": "ab-dirty"}, r"by code of no commit \(ab-dirty\)"),
        ({"command": "python -m stn.train resume=run trainer.max_epochs=9", "commit": "abc"}, "for more epochs"),
    ):
        path.write_text(json.dumps(environment | {"command": "python -m stn.train", "resumed": [resumed]}))
        with pytest.raises(InputError, match=said):
            record(folder)
    more = {"command": "python -m stn.train trainer.max_epochs=9 seed=0", "commit": "abc"}  # of a resumed sweep
    path.write_text(json.dumps(environment | {"command": "python -m stn.train", "resumed": [more]}))
    record(folder)
    shutil.rmtree(RESULTS)
    (folder / "metrics.json").unlink()
    with pytest.raises(InputError, match="is not the folder of a finished run"):
        record(folder)
    assert not RESULTS.exists()


def test_a_change_is_compared_with_the_same_seeds() -> None:
    def runs(accuracies: dict[int, float]) -> list[dict[str, object]]:
        return [{"seed": seed, "metrics": {"test_accuracy": value}} for seed, value in accuracies.items()]

    found = changes({"fast94": runs({0: 0.9, 1: 0.92, 2: 0.1}), "fast94,tta=none": runs({0: 0.8, 1: 0.82})})
    assert "| `tta=none` | 81.00% (80.00% to 82.00%) | 91.00% (90.00% to 92.00%) | 2 |" in found


def test_the_arms_of_a_distortion_are_compared_with_the_plain_one() -> None:
    warp = {"rotation": 90.0, "scale": [0.7, 1.2], "aspect": 1.0, "shear": 0.0, "shift": 0.2, "canvas": None}

    def runs(
        arm: str, accuracies: list[float], seconds: float, test: Any = None, epochs: int = 15, **more: float
    ) -> list[dict[str, Any]]:
        data = {
            "distortion": warp | {"undo": arm == "ceiling"},
            "test_distortion": test,
            "root": "data/cifar10",
            "_target_": "stn.data.ImageFolderDataModule",
        }
        config = {"arm": arm, "data": data, "model": {"classifier": {"widths": [32, 64]}}}
        metrics = {"epochs": epochs, "seconds": seconds, **more}
        return [
            {"seed": seed, "config": config, "metrics": metrics | {"test_accuracy": value}}
            for seed, value in enumerate(accuracies)
        ]

    errors = {"test_transformer_corner_error_pixels": 0.55, "test_transformer_angle_error_degrees": 1.23}
    results = {
        "preset,a": runs("plain", [0.70, 0.71, 0.72], 400),
        "preset,b": runs("transformer", [0.80, 0.82, 0.84], 700, **errors),
        "preset,c": runs("ceiling", [0.85], 410),
        "other,a": runs("plain", [0.1], 400),
        "preset,d": runs("window", [0.75, 0.76, 0.77], 399, epochs=20),
        "preset,e": runs("window", [0.75, 0.76, 0.77], 401, epochs=30),
    }
    images = "turned ±90°, scaled 0.7 to 1.2, shifted ±10%"
    _, _, *rows = arms(results, ["preset"]).splitlines()
    p = stats.ttest_rel((0.80, 0.82, 0.84), (0.70, 0.71, 0.72)).pvalue
    assert rows == [
        f"| {images} | 15 | `plain` | 32, 64 | 71.00% (70.00% to 72.00%) | 3 |  |  |  |  | 400 s |",
        f"| {images} | 15 | `transformer` | 32, 64 | 82.00% (80.00% to 84.00%) | 3 | +11.00 | {p:.3f} "
        "| 0.6 px | 1.2 ° | 700 s |",
        f"| {images} | 15 | `ceiling` | 32, 64 | 85.00% | 1 | +14.00 |  |  |  | 410 s |",
        f"| {images} | 20 | `window` | 32, 64 | 76.00% (75.00% to 77.00%) | 3 | +5.00 |  |  |  | 399 s |",
    ]
    _, _, *rows = gains(results, ["preset"]).splitlines()
    assert rows == [f"| {images} | 15 | 71.00% |  | 85.00% (1 seed) | **82.00%** | +11.00 | {p:.3f} |"]
    assert gains(results, ["preset"], fewest=4) == ""
    wider = {"preset,f": runs("wider", [0.74, 0.75], 400)}
    assert "| 71.00% | 74.50% (2 seeds) | 85.00% (1 seed) |" in gains(results | wider, ["preset"])

    upright = warp | {"rotation": 0.0, "scale": [1.0, 1.0], "shift": 0.0}
    results = {
        "preset,d": runs("plain", [0.9], 400, upright),
        "preset,e": runs("plain", [0.92], 400, warp),
        "preset,f": runs("transformer", [0.89], 400, upright),
        "preset,model.classifier.widths=[32,64],g": runs("transformer", [0.95], 400, upright),
        "preset,model.classifier.widths=[32,64],h": runs("plain", [0.9], 400, upright),
        "preset,model.classifier.widths=[64,64],i": runs("plain", [0.8], 400, upright),
        "preset,model.classifier.widths=[64,64],j": runs("labels", [0.79], 400, upright),
    }
    results["preset,e"][0]["config"]["data"] |= {"distortion": None, "test_distortion": None}
    _, _, *rows = arms(results, ["preset"]).splitlines()
    assert [(row.split(" | ")[2], row.split(" | ")[6]) for row in rows] == [
        (f"`transformer`, trained on images {images}", "-3.00"),
        (f"`plain`, trained on images {images}", "-2.00"),
        ("`plain`", ""),
        (f"`plain`, trained on images {images}", ""),
        (f"`transformer`, trained on images {images}", "+5.00"),
        (f"`labels`, trained on images {images}", "-1.00"),
        (f"`plain`, trained on images {images}", ""),
    ]


def test_a_trap_stands_beside_the_recipe_and_not_among_the_arms() -> None:
    def runs(accuracy: float, corners: float) -> list[dict[str, Any]]:
        distortion = {"rotation": 90.0, "scale": [1.0, 1.0], "shift": 0.0, "canvas": None}
        errors = {"test_transformer_corner_error_pixels": corners, "test_transformer_angle_error_degrees": 2.0}
        metrics = {"epochs": 6, "seconds": 300.0, "test_accuracy": accuracy}
        model = {"classifier": {"widths": [32, 64, 128]}}
        config = {
            "arm": "transformer",
            "data": {"distortion": distortion, "root": "data/cifar10", "_target_": "stn.data.ImageFolderDataModule"},
            "model": model,
        }
        return [{"seed": 0, "config": config, "metrics": metrics | errors}]

    results = {
        RECIPE: runs(0.82, 0.31),
        f"{RECIPE},model.transformer.padding=zeros": runs(0.8, 0.5),
        f"{RECIPE},model/warp=similarity,tta=null": runs(0.7, 9.0),
    }
    _, _, *rows = traps(results).splitlines()
    assert [row.split(" | ")[1:] for row in rows] == [
        ["", "82.00%", "0.3 px", "2.0 °", "1 |"],
        ["`model.transformer.padding=zeros`", "80.00%", "0.5 px", "2.0 °", "1 |"],
        ["`model/warp=similarity` `tta=null`", "70.00%", "9.0 px", "2.0 °", "1 |"],
    ]
    results["does_it_help,a"] = runs(0.6, 0.0)
    results["does_it_help,a"][0]["config"]["arm"] = "plain"
    _, _, *rows = arms(results, ["does_it_help"]).splitlines()
    assert [row.split(" | ")[4] for row in rows] == ["60.00%", "82.00%"]
    with pytest.raises(InputError, match=r"tta=null: there is another result of its arm on these images"):
        arms(results | {f"{RECIPE},tta=null": runs(0.8, 0.3)}, ["does_it_help"])


@pytest.mark.parametrize("trap", [RandomStart, RoundedTheta])
def test_the_transformers_of_the_ablation_walk_into_their_trap(trap: type[SpatialTransformer]) -> None:
    image = torch.rand(2, 3, 16, 16)
    theta = Affine().identity().expand(2, -1) + 0.003
    torch.manual_seed(0)
    transformer = trap(FullyConnectedLocalization(image_size=16))
    plain = SpatialTransformer(transformer.localization)
    reads_exactly = torch.equal(transformer.transform(image, theta), plain.transform(image, theta))
    starts_upright = torch.equal(transformer(image), plain(image))
    assert (reads_exactly, starts_upright) == ((True, False) if trap is RandomStart else (False, True))


def test_errors_on_digits_stand_beside_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    def runs(accuracies: list[float], distortion: str, canvas: int | None, **more: Any) -> list[dict[str, Any]]:
        model = {"classifier": {"_target_": "stn.networks.ConvNet"}, "warp": {"_target_": "stn.layers.Affine"}}
        config = {"model": model | {"placement": "input"}, "pose_weight": 0.0} | more
        warp = {"_target_": f"stn.data.{distortion}Distortion", "canvas": canvas, "rotation": 90, "scale": [1.0, 1.0]}
        warp |= {"along_diagonal": True}
        config["data"] = {"distortion": warp}
        errors = {"test_transformer_corner_error_pixels": 0.46, "test_transformer_angle_error_degrees": 1.0}
        metrics = {"epochs": 30} | errors
        return [{"config": config, "metrics": metrics | {"test_accuracy": value}} for value in accuracies]

    longer = runs([0.996], "Affine", None)
    longer[0]["metrics"]["epochs"] = 100
    free_corners = runs([0.1], "Projective", None)
    free_corners[0]["config"]["data"]["distortion"]["along_diagonal"] = False
    found = digits(
        {
            "distorted_mnist": runs([0.99, 0.994], "Affine", None),
            "distorted_mnist,b": runs([0.995], "Affine", 42),
            "distorted_mnist,c": runs([0.98], "Affine", 60, pose_weight=1.0),
            "distorted_mnist,d": runs([0.97], "Projective", None),
            "distorted_mnist,e": free_corners,
            "distorted_mnist,f": longer,
            "other": runs([0.1], "Elastic", None),
        }
    )
    assert "| ST-CNN | Affine | published | 640 | 0.7 | 0.5 | 0.8 | 1.2 | 1.7 | 3 |" in found
    assert "| ST-CNN | Affine | measured | 30 | 0.80 (0.60 to 1.00) | 0.50 | 3.00 |  |  | 1 or 2 |" in found
    assert "| ST-CNN | Affine | measured | 100 | 0.40 |  |  |  |  | 1 |" in found
    assert "| ST-CNN | Affine | measured, pose | 30 |  |  |  |  | 2.00; 0.5 px; 1.0 ° | 1 |" in found


def test_few_images_have_a_table_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    warp = {"_target_": "stn.data.AffineDistortion", "rotation": 90.0, "scale": [1.0, 1.0], "canvas": None}

    def runs(
        accuracies: list[float], placement: str, weight: float, arm: str | None = None, callbacks: str = "history"
    ) -> list[dict[str, Any]]:
        model = {"placement": placement, "classifier": {"_target_": "stn.networks.ConvNet"}}
        data = {"subset": 1000, "channels": 1, "distortion": warp}
        config = {"model": model, "pose_weight": weight, "data": data, "arm": arm, "callbacks": [callbacks]}
        return [{"config": config, "metrics": {"test_accuracy": value, "epochs": 200}} for value in accuracies]

    digits_alone = {
        "distorted_mnist,a": runs([0.9, 0.91], "none", 0.0),
        "distorted_mnist,b": runs([0.88], "input", 0.0),
        "distorted_mnist,c": runs([0.95], "input", 1.0),
    }
    photographs = {
        "does_it_help,a": runs([0.7], "input", 1.0, "transformer"),
        "does_it_help,b": runs([0.1], "none", 0.0, "ceiling"),
        "does_it_help,c": runs([0.1], "none", 0.0, "plain", "checkpoint"),
    }
    rows = [
        "| `distorted_mnist` | ConvNet | turned ±90° | 1,000 | 200 | 90.5% (90.0% to 91.0%) | 88.0% | 95.0% | 1 or 2 |",
        "| `does_it_help` | ConvNet | turned ±90° | 1,000 | 200 |  |  | 70.0% | 1 |",
    ]
    assert little(digits_alone | photographs).splitlines()[2:] == rows
    assert "None is measured yet." in digits(digits_alone) and arms(photographs, ["does_it_help"]) == ""
    with pytest.raises(InputError, match="distorted_mnist,d: there is another result of plain on 1000 images"):
        little(digits_alone | {"distorted_mnist,d": runs([0.9], "none", 0.0)})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rotation": 0.0, "scale": [1.0, 1.0]}, "upright"),
        ({"shift": None, "canvas": 64, "pieces": 16}, "turned ±90°, anywhere, on 64 × 64, among 16 pieces of others"),
        ({"displacement": 1.5, "rotation": 0}, "points displaced by 1.5 px"),
        (
            {"displacement": 5, "rotation": 0, "along_diagonal": True},
            "corners along their diagonals displaced by 5 px",
        ),
        ({"shear": 0.3}, "turned ±90°, stretched, sheared"),
    ],
)
def test_a_distortion_in_words(changes: dict[str, Any], said: str) -> None:
    upright = {"rotation": 90.0, "scale": [1.0, 1.0], "aspect": 1.0, "shear": 0.0, "shift": 0.0, "canvas": None}
    assert warp_of(upright | changes) == said


def test_a_colocalization_is_kept_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert colocalized() == ""
    for seed, found in ((0, 0.9), (1, 1.0)):
        data = {"_target_": "stn.data.MNISTDataModule", "root": "data", "distortion": {"pieces": 16, "piece_size": 6}}
        result = {"category": "3", "seed": seed, "found": found, "encoder_test_accuracy": 0.98}
        result |= {"seconds": 4.0 + seed, "data": data}
        folder = tmp_path / str(seed)
        folder.mkdir()
        content = json.dumps(result | {"provenance": {"commit": "abc"}})
        (folder / "colocalization.json").write_text(content)
        assert record(folder) == RESULTS / "colocalization" / f"mnist-16-3-{seed}.json"
    another = RESULTS / "colocalization" / "mnist-16-4-0.json"
    another.write_text(json.dumps(json.loads(content) | {"category": "4", "images_of": "mnist"}))
    assert "| mnist | 16 of 6 × 6 | 98.0% | `4` 100%, `3` 95% (90% to 100%) | 1 or 2 | 4 s |" in colocalized()
    (folder / "colocalization.json").write_text(content.replace("abc", "abc-dirty"))
    with pytest.raises(InputError, match="was trained by code of no commit"):
        record(folder)


def test_the_command_makes_the_pages(folder: Path, command: Command) -> None:
    for name in ("results", "docs"):
        (folder.parent / name).mkdir()
    shutil.copy(ROOT / "results" / "published.json", folder.parent / "results")
    shutil.copy(ROOT / "results" / "jaderberg2015.json", folder.parent / "results")
    shutil.copy(ROOT / "results" / "published_logs.csv", folder.parent / "results")
    shutil.copy(ROOT / "README.md", folder.parent)
    shutil.copy(ROOT / "docs" / "speed.md", folder.parent / "docs")
    found = command("run", verb="record")
    assert (found.returncode, found.stdout) == (0, "results/demo/0.json\n"), found.stderr
    accuracy = json.loads((folder / "metrics.json").read_text())["test_accuracy"]
    for name in ("docs/results.md", "README.md"):
        assert f"**{accuracy:.2%}**" in (folder.parent / name).read_text()
    assert (folder.parent / "docs" / "published.png").exists()


def test_the_figure_of_the_default_is_that_of_the_config_it_composes() -> None:
    """It was run by another command, before it was the default."""
    composed = cast(dict[str, Any], OmegaConf.to_container(compose(folder="run"), resolve=True))
    (run,) = read_results()["default"]
    kept = run["config"]
    training = ["flip", "shift", "cutout", "cutmix", "batch_size", "val_fraction", "validate_on", "distortion"]
    assert {key: composed["data"][key] for key in training} == {key: kept["data"][key] for key in training}
    assert composed["trainer"] == kept["trainer"] | {"precision": composed["trainer"]["precision"]}
    for key in (
        "model",
        "optimizer",
        "label_smoothing",
        "pose_weight",
        "pose_label_weight",
        "channels_last",
        "compile",
    ):
        assert composed[key] == kept[key], key
    assert {name for name, callback in composed["callbacks"].items() if callback} == set(kept["callbacks"])
    assert composed["tta"] == kept["tta"] == "six"
