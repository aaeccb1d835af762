"""What an evaluation finds, against references by hand; its files; the command as a user types it."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import TINY, Command
from PIL import Image
from test_bad_input import refused
from test_classifier import CLASSES, MODEL, OPTIMIZER
from torch import Tensor, nn

import stn
from stn.classifier import Classifier
from stn.config import compose
from stn.csv_logger import read_rows
from stn.data import ShapesDataModule
from stn.evaluation import Evaluation, accuracy_by_angle, evaluate, sharpening, some_of
from stn.evaluation_files import write_files
from stn.layers import SpatialTransformer, Translation, figure_points
from stn.measures import calibration, expected_calibration_error, measure
from stn.robustness import SWEEPS, curve, warped
from stn.scoring import Scored, Scorer, score
from stn.training import train

QUIET = ["callbacks.warps=null", "callbacks.progress=null", "logger=csv"]
NAMES = ["a", "b", "c", "d", "e", "f", "g"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(compose([*TINY, *QUIET], folder))
    return folder


def evaluated(folder: Path, *overrides: str, **options: Any) -> Evaluation:
    run = stn.Run.open(folder)
    return evaluate(run, run.settings(overrides), **options)


def random_scores(count: int = 500) -> tuple[Tensor, Tensor]:
    labels = torch.randint(len(NAMES) - 1, (count,))  # no image of the last class
    return 2 * torch.randn(count, len(NAMES)) + 3 * torch.nn.functional.one_hot(labels, len(NAMES)), labels


def test_accuracies_and_confusion_are_those_counted_by_hand() -> None:
    scores, labels = random_scores()
    scores[:, 2] -= 100  # a class that is never predicted
    found = measure(scores, labels, NAMES, worst=3)
    order, truth = np.argsort(-scores.numpy(), axis=1), labels.numpy()
    confusion = np.zeros((7, 7), int)
    np.add.at(confusion, (truth, order[:, 0]), 1)
    assert found["confusion"] == confusion.tolist() and found["images"] == 500
    assert found["accuracy"] == pytest.approx((order[:, 0] == truth).mean())
    assert found["top_5_accuracy"] == pytest.approx((order[:, :5] == truth[:, None]).any(axis=1).mean())
    for index, name in enumerate(NAMES):
        numbers, right = found["classes"][name], confusion[index, index]
        assert numbers["count"] == (truth == index).sum()
        for key, all_of in (("recall", confusion[index].sum()), ("precision", confusion[:, index].sum())):
            assert numbers[key] == (pytest.approx(right / all_of) if all_of else None)
        assert numbers["accuracy"] == numbers["recall"]
    losses = -np.log(np.exp(scores.double().numpy())[range(500), truth] / np.exp(scores.double().numpy()).sum(axis=1))
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    wrong = [index for index in np.argsort(-losses) if order[index, 0] != truth[index]][:3]
    assert [one["image"] for one in found["mistakes"]] == wrong
    assert [one["predicted"] for one in found["mistakes"]] == [NAMES[order[index, 0]] for index in wrong]
    assert "top_5_accuracy" not in measure(scores[:, :2], labels % 2, NAMES[:2], worst=0)


def test_the_calibration_error_is_that_of_fifteen_bins() -> None:
    scores, labels = random_scores()
    scores[:100] *= 100  # probabilities of exactly 1, and some of them wrong, belong to the last bin
    probabilities = scores.double().softmax(dim=1).numpy()
    highest, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels.numpy()
    assert (highest == 1).sum() > 50 and not right[highest == 1].all()
    error = 0.0
    for low, high in zip(np.linspace(0, 1, 16)[:-1], np.linspace(0, 1, 16)[1:], strict=True):
        inside = (highest > low) & (highest <= high)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - highest[inside].mean())
    bins = calibration(scores, labels)
    assert expected_calibration_error(bins) == pytest.approx(error) and error > 0.01
    assert len(bins) == 15 and sum(one["count"] for one in bins) == 500


def test_scores_that_say_how_often_they_are_right_are_calibrated() -> None:
    scores = torch.tensor([[0.8, 0.2]]).log().expand(10, 2)
    labels = torch.tensor([0] * 8 + [1] * 2)
    assert expected_calibration_error(calibration(scores, labels)) == pytest.approx(0, abs=1e-6)
    assert expected_calibration_error(calibration(scores, labels * 0)) == pytest.approx(0.2)


class Centroid(nn.Module):
    """A localization that finds where the brightness is."""

    out_features = 2

    def forward(self, images: Tensor) -> Tensor:
        weights = (images - images.amin(dim=(2, 3), keepdim=True)).sum(dim=1).double()
        side = images.shape[-1]
        along = (2 * torch.arange(side, dtype=torch.float64) + 1) / side - 1
        total = weights.sum(dim=(1, 2))
        x, y = ((weights.sum(dim=axis) * along).sum(dim=1) / total for axis in (1, 2))
        return torch.stack((x, y), dim=1).float()


def test_a_transformer_that_undoes_a_shift_leaves_no_variance_within_a_class() -> None:
    images, labels = torch.zeros(40, 3, 32, 32, dtype=torch.uint8), torch.arange(40) % 2
    for index, label in enumerate(labels.tolist()):
        x, y = torch.randint(4, 20, (2,)).tolist()
        images[index, :, y : y + 4 + 2 * label, x : x + 4] = 200 - 20 * label
    transformer = SpatialTransformer(Centroid(), Translation())
    with torch.no_grad():
        transformer.head.weight.copy_(torch.eye(2))
    classifier = Classifier(MODEL, OPTIMIZER, CLASSES).eval()
    classifier.net.transformer = transformer
    scorer = Scorer(classifier, pl.Trainer(accelerator="cpu", logger=False))
    scored = score(scorer, list(zip(images.split(15), labels.split(15), strict=True)))
    found = sharpening(scorer, scored)
    values = images.double().numpy() / 255
    before = np.mean([values[labels == label].var(axis=0).mean() for label in (0, 1)])
    assert found is not None and found["variance_before"] == pytest.approx(before, rel=1e-5)
    assert found["ratio"] == pytest.approx(0, abs=1e-6)
    assert scored.after is not None
    means = scored.after.compute()[0]
    assert means[0, 0, 14:18, 14:18].numpy() == pytest.approx(200 / 255, abs=1e-4)
    assert means[2].isnan().all()  # a class without images


@pytest.mark.parametrize(
    ("placement", "name"),
    [
        ("input", "transformer"),
        ("deep", "transformer"),
        ("shared", "transformer"),
        ("parallel", "transformer.0"),
        ("features", None),
        ("none", None),
    ],
)
def test_the_transformer_on_the_input_is_found_in_every_placement(placement: str, name: str | None) -> None:
    classifier = Classifier(MODEL | {"placement": placement}, OPTIMIZER, CLASSES).eval()
    scorer = Scorer(classifier, pl.Trainer(accelerator="cpu", logger=False))
    assert scorer.on_input == name
    scored = score(scorer, [(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]))])
    assert (scored.before is None) == (name is None) and scored.records.keys() == scorer.transformers.keys()


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("side", [7, 32])
def test_the_identity_of_a_sweep_leaves_every_pixel_as_it_is(name: str, side: int) -> None:
    images = torch.randint(0, 256, (3, 2, side, side), dtype=torch.uint8)
    sweep = SWEEPS[name]
    assert sweep.identity in sweep.values and torch.equal(warped(images, sweep, sweep.identity), images)


def test_sweeps_move_the_images_as_they_say() -> None:
    images = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    assert torch.equal(warped(images, SWEEPS["rotation"], 90), images.rot90(-1, (2, 3)))  # clockwise
    right, down = (warped(images, SWEEPS[name], 0.1) for name in ("shift_x", "shift_y"))
    assert torch.equal(right[..., 2:], images[..., :-2]) and torch.equal(right[..., 0], images[..., 0])
    assert torch.equal(down[:, :, 2:], images[:, :, :-2])
    square = torch.zeros(1, 1, 20, 20, dtype=torch.uint8)
    square[..., 5:15, 5:15] = 255
    assert warped(square, SWEEPS["scale"], 2.0)[..., 1:-1, 1:-1].eq(255).all()
    assert warped(square, SWEEPS["scale"], 0.5).count_nonzero() <= 36


def test_turning_round_images_changes_nothing_and_moving_them_does() -> None:
    along = torch.arange(33) - 16
    radius = torch.hypot(along[:, None].float(), along.float())
    kinds = torch.stack([(10 - (radius - middle).abs()).clamp(0, 6) / 6 for middle in (0, 14)])
    images = (kinds[:, None] * 255).byte().repeat(5, 1, 1, 1)
    batches = [(images[:6], torch.tensor([0, 1] * 3)), (images[6:], torch.tensor([0, 1] * 2))]

    def bright_in_the_middle(images: Tensor) -> Tensor:
        middle = images[:, 0, 16, 16] / 255
        return torch.stack((middle, 1 - middle), dim=1)

    assert [point["accuracy"] for point in curve(bright_in_the_middle, batches, "rotation")] == [1.0] * 25
    moved = {point["value"]: point["accuracy"] for point in curve(bright_in_the_middle, batches, "shift_x")}
    assert moved[0] == 1 and moved[0.4] == moved[-0.4] == 0  # there the disc is dark, and the ring bright


def test_val_is_what_training_held_out(trained: Path) -> None:
    found = evaluated(trained / "checkpoints" / "last.ckpt", split="val").numbers
    logged = [row for row in read_rows(trained / "metrics.csv") if row.get("val/accuracy")][-1]
    assert found["images"] == 12 and found["epoch"] == 2
    assert found["accuracy"] == pytest.approx(float(logged["val/accuracy"]), abs=1e-7)
    assert found["loss"] == pytest.approx(float(logged["val/loss"]), rel=1e-5)
    for name in ("pose_error_pixels", "scale_mean", "shift_x_pixels_spread", "lost"):
        logged_value = float(logged[f"transformer/{name}"])
        assert found["transformers"]["transformer"][name] == pytest.approx(logged_value, rel=1e-4, abs=1e-6)


def test_train_is_evaluated_without_augmentation(trained: Path) -> None:
    found = evaluated(trained, "data.flip=true", "data.shift=4", "data.cutmix=1.0", split="train").numbers
    data = ShapesDataModule(train_images=60, test_images=20, batch_size=20, val_fraction=0.2)
    data.setup("fit")
    scores = stn.Run.open(trained).classifier(data.images["train"])
    assert found["images"] == 48
    assert found["loss"] == pytest.approx(nn.functional.cross_entropy(scores, data.labels["train"]).item(), rel=1e-4)


@pytest.mark.parametrize("tta", ["none", "mirror", "six"])
def test_views_are_averaged_as_in_testing_and_the_run_is_left_as_it_is(tta: Any, trained: Path) -> None:
    run = stn.Run.open(trained)
    found = evaluate(run, run.settings(), tta=tta).numbers
    assert run.classifier.tta == "none" and found["options"]["tta"] == tta
    assert evaluate(run, run.settings([f"tta={tta}"])).numbers["loss"] == found["loss"]
    plain = evaluate(run, run.settings()).numbers["transformers"]["transformer"]
    assert found["transformers"]["transformer"] == pytest.approx(plain)  # of the image itself, whatever else is seen
    run.classifier.tta = tta
    data = ShapesDataModule(train_images=60, test_images=20)
    data.setup("test")
    scores = run.classifier(data.images["test"])
    assert found["loss"] == pytest.approx(nn.functional.cross_entropy(scores, data.labels["test"]).item(), rel=1e-4)


def test_a_part_of_a_set_is_of_all_classes() -> None:
    labels = torch.arange(2000) % 10
    batches = [(part[:, None, None, None].byte(), part) for part in labels.split(300)]
    found = torch.cat([part for _, part in some_of(batches, 500)])
    assert len(found) == 500 and found.bincount().min() > 30
    assert all(torch.equal(images.flatten(), part) for images, part in some_of(batches, 500))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_every_precision_of_a_run_is_evaluated(precision: str, trained: Path) -> None:
    found = evaluated(trained, f"trainer.precision={precision}").numbers
    expected = evaluated(trained).numbers
    assert found["loss"] == pytest.approx(expected["loss"], rel=0.02)
    json.dumps(found, allow_nan=False)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of grey images of two classes whose names look like markup."""
    for split in ("train", "test"):
        for label, name in enumerate(["[red]dark 猫", r"$\bright$"]):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for index in range(6):
                Image.new("L", (32, 32), 200 * label + index).save(folder / f"{index}.png")
    return tmp_path / "photos"


def test_grey_images_and_names_with_markup_are_evaluated(photos: Path, command: Command, tmp_path: Path) -> None:
    settings = [*TINY[4:], "data=image_folder", f"data.root={photos}", "data.channels=1", "data.batch_size=4"]
    train(compose([*settings, *QUIET], tmp_path / "run"))
    found = command("run", "sweep=shift_y", "worst=1", verb="evaluate")
    assert found.returncode == 0, found.stderr
    assert "[red]dark 猫" in found.stdout and r"$\bright$" in found.stdout and "Warning" not in found.stderr
    folder = tmp_path / "run" / "evaluation"
    numbers = json.loads((folder / "evaluation.json").read_text())
    assert list(numbers["classes"]) == [r"$\bright$", "[red]dark 猫"] and len(numbers["mistakes"]) <= 1
    assert {"mistakes.png", "class_means.png", "robustness_shift_y.png"} <= {path.name for path in folder.iterdir()}


def test_a_network_without_transformer_is_evaluated(tmp_path: Path) -> None:
    train(compose([*TINY, "model.placement=none", "callbacks.progress=null", "logger=csv"], tmp_path / "run"))
    evaluation = evaluated(tmp_path / "run", worst=3)
    numbers = evaluation.numbers
    assert numbers["transformers"] == {} and numbers["sharpening"] is None and evaluation.class_means is None
    write_files(evaluation, tmp_path)
    assert not (tmp_path / "class_means.png").exists()
    with Image.open(tmp_path / "mistakes.png") as picture:
        assert picture.height < 200  # no row of what a transformer reads


def test_the_command_finds_what_the_run_found_and_writes_it(
    trained: Path, command: Command, tmp_path: Path, copied: Callable[[], Path]
) -> None:
    folder = copied()
    found = command("latest", "sweep=[rotation,scale]", verb="evaluate")
    assert found.returncode == 0, found.stderr
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"{metrics['test_accuracy']:.2%}" in found.stdout and f"{metrics['test_loss']:.4g}" in found.stdout
    assert f"{metrics['test_transformer_pose_error_pixels']:.4g}" in found.stdout
    names = {path.name for path in (folder / "evaluation").iterdir()}
    pictures = {"confusion", "calibration", "mistakes", "class_means", "robustness_rotation", "robustness_scale"}
    pictures.add("angle")  # of the poses, which are known
    assert names == {"evaluation.json", "evaluation.csv"} | {f"{name}.png" for name in pictures}
    numbers = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    assert numbers["accuracy"] == metrics["test_accuracy"]
    assert numbers["loss"] == pytest.approx(metrics["test_loss"], rel=1e-6)
    for sweep, identity in (("rotation", 0), ("scale", 1)):
        (plain,) = [point for point in numbers["robustness"][sweep] if point["value"] == identity]
        assert plain["accuracy"] == numbers["accuracy"]
    assert numbers["provenance"]["command"].startswith("python -m stn.evaluate latest")
    assert numbers["split"] == "test" and numbers["images"] == 20 and numbers["data"]["test_images"] == 20
    with (folder / "evaluation" / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(numbers["classes"])
    assert [float(row["recall"]) for row in rows] == [one["recall"] for one in numbers["classes"].values()]


def test_the_accuracy_by_angle_is_that_of_the_images_so_turned(trained: Path) -> None:
    found = evaluated(trained).numbers
    run = stn.Run.open(trained)
    data = run.data(run.settings())
    data.setup("test")
    along = data.figures["test"][:, 3] - data.figures["test"][:, 0]  # the upper side of each figure
    degrees = torch.atan2(along[:, 1], along[:, 0]).rad2deg()
    right = run.classifier(data.images["test"]).argmax(dim=1) == data.labels["test"]
    rows = found["accuracy_by_angle"]
    assert sum(row["images"] for row in rows) == 20 and len(rows) > 3
    for row in rows:
        within = (degrees >= row["from"]) & (degrees < row["to"])
        assert row["images"] == within.sum() and row["accuracy"] == pytest.approx(right[within].double().mean().item())
    for name in ("pose_error_pixels", "corner_error_pixels", "angle_error_degrees"):
        assert found["transformers"]["transformer"][name] > 0


def test_images_that_differ_by_rounding_alone_are_upright() -> None:
    scored = Scored(torch.eye(4), torch.arange(4), {}, None, None)
    upright = figure_points().float() + torch.tensor([[[0.0]], [[0.1]], [[-0.1]], [[0.2]]])
    angle = torch.tensor(3e-8)  # radians
    turned = upright @ torch.tensor([[1, angle], [-angle, 1]])
    assert accuracy_by_angle(scored, turned) == []
    around = upright.clone()
    around[0] = -around[0]  # turned by 180 degrees
    assert [row["images"] for row in accuracy_by_angle(scored, around)] == [3, 1]


def test_a_training_set_is_distorted_once_for_an_evaluation(tmp_path: Path) -> None:
    distorted = ("data/distortion=rts", "data.distortion.canvas=40", "callbacks.progress=null")
    train(compose([*TINY, *distorted, "trainer.max_epochs=1"], tmp_path / "run"))
    found = evaluated(tmp_path / "run", split="train").numbers
    assert found["images"] == 48 and found["transformers"]["transformer"]["corner_error_pixels"] > 0
    assert found["loss"] == evaluated(tmp_path / "run", split="train").numbers["loss"]


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Callable[[], Path]:
    """Copies the run to outputs/ of the test's own folder."""
    return lambda: Path(shutil.copytree(trained, tmp_path / "outputs" / "day" / "time"))


def test_other_images_of_a_run_are_other_results(trained: Path, command: Command, tmp_path: Path) -> None:
    more = ["+trainer.num_nodes=2", "data.test_images=30", "data.split_seed=3", "data.eval_batch_size=8"]
    limit = ["+trainer.limit_test_batches=2", "compile=default", "output=new/one"]
    other = command(str(trained), *more, *limit, verb="evaluate")
    assert other.returncode == 0, other.stderr
    numbers = json.loads((tmp_path / "new" / "one" / "evaluation.json").read_text())
    metrics = json.loads((trained / "metrics.json").read_text())
    assert numbers["images"] == 16 and numbers["loss"] != pytest.approx(metrics["test_loss"], rel=1e-4)


def test_results_are_replaced_only_if_asked_and_only_by_results(
    trained: Path, command: Command, tmp_path: Path
) -> None:
    output = tmp_path / "results"
    output.mkdir()
    for name in ("old.json", "evaluation.json"):
        (output / name).touch()
    said = "results holds files already: set overwrite=true, or output=… to another folder"
    refused(command(str(trained), "output=results", verb="evaluate"), said, program="stn.evaluate")
    bad = command(str(trained), "output=results", "overwrite=true", "data.test_images=0", verb="evaluate")
    refused(bad, "test_images 0 must be", program="stn.evaluate")
    assert (output / "old.json").exists()
    found = command(str(trained), "output=results", "overwrite=true", verb="evaluate")
    assert found.returncode == 0 and not (output / "old.json").exists() and (output / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("split=all", "split=all must be test, val or train"),
        ("tta=seven", "tta=seven must be none, mirror, six, turns, poses, unmirrored_poses or null"),
        ("sweep=rotate", "sweep=rotate: there is no such sweep; did you mean 'rotation'?"),
        ("sweep=[scale,3]", "sweep=[scale,3] must be a text, a list of texts or null"),
        ("worst=-1", "worst=-1 must be a whole number from 0 to 1000"),
        ("output=/dev/null/here", "/dev/null/here cannot be written: give another folder by output=…"),
    ],
)
def test_a_wrong_option_is_refused(option: str, said: str, trained: Path, command: Command) -> None:
    refused(command(str(trained), option, verb="evaluate"), said, program="stn.evaluate")
