"""Images of any kind are predicted as the network sees them: by the command, from Python, and by hand alike."""

import csv
import io
import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Command, environment
from omegaconf import OmegaConf
from PIL import Image
from test_bad_input import refused
from test_run import changed

import stn
from stn import prediction_files
from stn.classifier import Classifier
from stn.config import compose
from stn.errors import InputError
from stn.layers import transformers
from stn.prediction_files import predict_files
from stn.sources import find_files
from stn.training import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs."""
    folder = tmp_path_factory.mktemp("outputs") / "run"
    train(compose([*TINY, "callbacks.warps=null", "callbacks.progress=null"], folder))
    return folder


def network(placement: str = "input", channels: int = 3, folder: Path = Path("run")) -> stn.Run:
    """A run whose network has random weights and a mean colour."""
    plain: Any = OmegaConf.to_container(compose([*TINY, f"model.placement={placement}"], folder), resolve=True)
    classifier = Classifier(plain["model"], plain["optimizer"], ["ant", "bee", "cat", "dog"], channels)
    classifier.normalization.fit([0.2, 0.4, 0.6, 0.5, 0.5][:channels], [0.25] * channels)
    classifier.freeze()
    return stn.Run(folder, folder / "best.ckpt", 1, classifier, None, {})


def look_at(run: stn.Run, left: float, top: float, right: float, bottom: float) -> stn.Run:
    """The run with a transformer that reads the same box, in [-1, 1], of each image."""
    (transformer,) = transformers(run.classifier.net).values()
    width, height = (right - left) / 2, (bottom - top) / 2
    transformer.head.weight.zero_()
    transformer.head.bias.copy_(torch.tensor([width, 0, (left + right) / 2, 0, height, (top + bottom) / 2]))
    return run


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def by_hand(run: stn.Run, image: Image.Image) -> list[float]:
    """The probabilities of an RGB image in the order of the classes, by the classifier itself."""
    pixels = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
    return run.classifier(torch.tensor(pixels).permute(2, 0, 1)[None]).softmax(1)[0].tolist()


def probabilities(run: stn.Run, images: Any, **options: Any) -> list[list[float]]:
    """The probabilities of images in the order of the classes."""
    found = run.predict(images, **options)
    assert all(max(one.probabilities.values()) == one.probability for one in found)
    assert all(run.classes[one.label] == one.name == next(iter(one.probabilities)) for one in found)
    return [[one.probabilities[name] for name in run.classes] for one in found]


def save_every_kind(folder: Path) -> dict[str, Image.Image]:
    """Files of 25 formats, modes and sizes, by name, with what they show as RGB; and three that are broken."""
    folder.mkdir()
    photo = Image.fromarray(noise(30, 50, 3))
    modes = {"1": "png", "L": "png", "P": "png", "RGB": "bmp", "CMYK": "tif", "YCbCr": "tif", "LA": "png"}
    shown = {}
    for mode, ending in modes.items():
        photo.convert(mode).save(folder / f"{mode}.{ending}")
        shown[f"{mode}.{ending}"] = photo.convert(mode).convert("RGB")
    for ending in ("png", "webp", "tiff", "ppm", "tga", "jp2", "sgi", "pcx", "dib"):
        options = {"webp": {"lossless": True}, "jp2": {"irreversible": False}}.get(ending, {})
        photo.save(folder / f"photo.{ending}", **options)
        shown[f"photo.{ending}"] = photo
    for size in ((1, 1), (1, 70), (70, 1), (500, 3), (32, 32), (600, 400)):
        name = f"{size[0]}x{size[1]}.PNG"
        shown[name] = Image.fromarray(noise(size[1], size[0], 3))
        shown[name].save(folder / name)
    deep = noise(20, 30).astype(np.uint16) * 256 + 77
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(deep).save(folder / "deep.tif")
    Image.fromarray(noise(20, 30).astype(np.float32) / 255).save(folder / "float.tif")
    shown |= {name: Image.fromarray(noise(20, 30)).convert("RGB") for name in ("deep.png", "deep.tif", "float.tif")}
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    for ending in ("gif", "webp"):
        frames[0].save(folder / f"moving.{ending}", save_all=True, append_images=frames[1:], lossless=True)
        shown[f"moving.{ending}"] = frames[0]
    (folder / "truncated.png").write_bytes((folder / "600x400.PNG").read_bytes()[:3000])
    (folder / "text.jpg").write_text("a letter")
    (folder / "empty.gif").touch()
    (folder / "notes.txt").write_text("no image")
    return shown


def rows(folder: Path) -> dict[str, dict[str, str]]:
    """The rows of predictions.csv, by the names of the files."""
    with (folder / "predictions.csv").open(newline="") as file:
        return {Path(row["file"]).name: row for row in csv.DictReader(file)}


def test_every_kind_of_file_is_predicted_and_the_broken_ones_are_named(
    trained: Path, command: Command, tmp_path: Path
) -> None:
    shown = save_every_kind(tmp_path / "photos")
    assert len(shown) >= 25
    found = command(str(trained), "source=photos", "output=found", "batch_size=7", "topk=10", verb="predict")
    assert found.returncode == 1 and "Traceback" not in found.stderr, found.stderr
    for name, why in (
        ("truncated.png", "truncated"),
        ("text.jpg", "no known format"),
        ("empty.gif", "no known format"),
    ):
        assert any(f"photos/{name} is not a" in line and why in line for line in found.stderr.splitlines()), name
    assert "and 7 more" in found.stdout and "1 file is no image" in found.stdout
    table, run = rows(tmp_path / "found"), stn.Run.open(trained)
    assert table.keys() == shown.keys()
    for name, image in shown.items():
        first, *others = sorted(zip(by_hand(run, image), run.classes, strict=True), reverse=True)
        row = table[name]
        assert float(row["probability"]) == pytest.approx(first[0], abs=2e-6), name
        assert row["class"] == first[1] and row["class_2"] == others[0][1], name
    content = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert {Path(one["file"]).name for one in content["broken"]} == {"truncated.png", "text.jpg", "empty.gif"}
    assert content["epoch"] == run.epoch and content["options"]["batch_size"] == 7
    pictures = [tmp_path / "found" / one["picture"] for one in content["predictions"]]
    assert len(set(pictures)) == len(shown) and all(path.is_file() for path in pictures)


def test_the_command_python_and_the_network_itself_agree(trained: Path, command: Command, tmp_path: Path) -> None:
    run, folder = stn.Run.open(trained), shutil.copytree(trained, tmp_path / "run")
    images = [Image.fromarray(noise(32, 32, 3)), Image.fromarray(noise(90, 60, 3))]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    expected = [by_hand(run, image) for image in images]
    arrays = [np.asarray(image) for image in images]
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for given in (paths, map(str, paths), images, arrays, [array / 255 for array in arrays]):
        np.testing.assert_allclose(probabilities(run, given), expected, atol=1e-6)
    np.testing.assert_allclose(probabilities(run, paths[1]), expected[1:], atol=1e-6)
    found = command(str(folder), "source=?.png", verb="predict")
    assert found.returncode == 0 and found.stderr == "", found.stderr
    for number in range(2):
        row = rows(folder / "predictions")[f"{number}.png"]
        assert float(row["probability"]) == pytest.approx(max(expected[number]), abs=1e-6)
        assert "probability_5" in row and "probability_6" not in row
    run.classifier.tta = "six"
    assert (
        command(str(folder), "source=1.png", "tta=six", "output=six", "pictures=false", verb="predict").returncode == 0
    )
    assert float(rows(tmp_path / "six")["1.png"]["probability"]) == pytest.approx(
        max(by_hand(run, images[1])), abs=1e-6
    )
    assert sorted(path.name for path in (tmp_path / "six").iterdir()) == ["predictions.csv", "predictions.json"]


def test_tensors_of_any_size_are_predicted() -> None:
    run = network()
    exact = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    expected = run.classifier(exact).softmax(1)
    for given in (exact, exact / 255, (exact / 255).double()):
        np.testing.assert_allclose(probabilities(run, given, batch_size=2), expected, atol=1e-6)
    smooth = Image.fromarray(noise(4, 6, 3)).resize((96, 64), Image.Resampling.BICUBIC)
    tensor = torch.tensor(np.asarray(smooth)).permute(2, 0, 1)[None]
    for crop in (None, "center"):
        for given in (tensor, tensor / 255):  # torch resizes as PIL does, but for rounding
            np.testing.assert_allclose(
                probabilities(run, given, crop=crop), probabilities(run, smooth, crop=crop), atol=2e-3
            )
    assert run.predict([]) == [] and run.predict(exact[:0]) == []
    assert len(network(channels=5).predict(torch.rand(2, 5, 40, 40))) == 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_upright_also_when_they_are_opened_before(orientation: int, tmp_path: Path) -> None:
    run, upright = network(), Image.fromarray(noise(40, 20, 3))
    undo = [None, None, 0, 3, 1, 5, 2, 6, 4][orientation]  # the transposition that a camera records, see PIL
    recorded = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for ending in ("png", "tif"):
        recorded.save(tmp_path / f"photo.{ending}", exif=exif)
        for given in (tmp_path / f"photo.{ending}", Image.open(tmp_path / f"photo.{ending}")):
            assert probabilities(run, given) == [by_hand(run, upright)]
    (item,) = prediction_files.read_files(run, [str(tmp_path / "photo.tif")], None, {})
    assert np.array_equal(np.asarray(item[2]), noise(40, 20, 3))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_show_the_mean_colour(mode: str, tmp_path: Path) -> None:
    run = network()
    clear = Image.new("RGBA", (9, 5), (250, 0, 0, 0)).convert(mode)
    clear.save(tmp_path / "clear.png", **({"transparency": clear.getpixel((0, 0))} if mode == "P" else {}))
    expected = by_hand(run, Image.new("RGB", (9, 5), (51, 102, 153)))
    assert probabilities(run, tmp_path / "clear.png") == [expected]
    assert probabilities(network(channels=4), clear) != probabilities(network(channels=4), Image.new("RGB", (9, 5)))


@pytest.mark.parametrize(("crop", "box"), [(None, (75, 12.5, 175, 62.5)), ("center", (87.5, 12.5, 137.5, 62.5))])
def test_the_outline_lies_on_the_whole_original(crop: Any, box: tuple[float, ...], tmp_path: Path) -> None:
    run = look_at(network(), -0.25, -0.75, 0.75, 0.25)
    original = Image.new("RGB", (200, 100), "black")
    original.save(tmp_path / "wide.png")
    for given in (original, torch.zeros(1, 3, 100, 200)):
        (found,) = run.predict(given, crop=crop)
        assert found.theta is not None and found.outline is not None
        assert found.pose == pytest.approx(
            {"rotation_degrees": 0, "scale": 0.5, "shift_x": 0.25, "shift_y": -0.25}, abs=1e-5
        )
        corners = (found.outline[:96:24] + 1) / 2 * torch.tensor([200, 100])
        left, top, right, bottom = box
        expected = torch.tensor([[left, top], [right, top], [right, bottom], [left, bottom]])
        torch.testing.assert_close(corners, expected)
    predict_files(run, [str(tmp_path / "wide.png")], tmp_path, {}, 4, crop, 1, True)
    assert float(rows(tmp_path)["wide.png"]["scale"]) == 0.5 and float(rows(tmp_path)["wide.png"]["shift_y"]) == -0.25
    with Image.open(tmp_path / "pictures" / "1_wide.png") as picture:
        left_half = np.asarray(picture)[:, : picture.width // 2].astype(int)
    coloured = np.argwhere(np.ptp(left_half, axis=2) > 100)
    extent = coloured.max(axis=0) - coloured.min(axis=0)
    scale = prediction_files.SIDE / 200
    assert extent == pytest.approx([scale * (box[3] - box[1]), scale * (box[2] - box[0])], abs=8)


def test_the_central_square_is_what_a_crop_takes() -> None:
    run, image = network(), Image.fromarray(noise(60, 101, 3))
    expected = by_hand(run, image.crop((20, 0, 80, 60)))
    assert probabilities(run, image, crop="center") == [expected] != probabilities(run, image)


@pytest.mark.parametrize(
    ("placement", "channels"),
    [
        *((placement, 3) for placement in ("none", "features", "deep", "parallel", "shared")),
        *(("input", c) for c in (1, 2, 4)),
    ],
)
def test_every_network_predicts_and_is_drawn(placement: str, channels: int, tmp_path: Path) -> None:
    run = network(placement, channels)
    image = Image.fromarray(noise(48, 40, 4))
    image.save(tmp_path / "x.png")
    found = predict_files(run, [str(tmp_path / "x.png")], tmp_path, {}, 2, None, 1, True)
    assert found.rows[0]["picture"] == "pictures/1_x.png" and len(found.rows[0]["probabilities"]) == 2
    assert (found.overview[0].outline is None) == (placement == "none")
    assert found.overview[0].image.size == (40, 48)
    first = next(iter(transformers(run.classifier.net).values()), None)
    (one,) = run.predict(image)
    if first is None:
        assert one.theta is None and one.outline is None
    else:
        assert one.theta.shape == (first.num_looks * first.warp.num_params,)
    with Image.open(tmp_path / "overview.png") as sheet:
        assert np.asarray(sheet).std() > 10


def test_files_of_the_same_name_keep_a_picture_each(tmp_path: Path) -> None:
    for name, colour in (("a", "red"), ("b", "blue")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 9), colour).save(tmp_path / name / "x.png")
    files, _ = find_files(str(tmp_path))
    found = predict_files(network("none"), files, tmp_path, {}, 1, None, 1, True)
    colours = []
    for row in found.rows:
        with Image.open(tmp_path / row["picture"]) as picture:
            colours.append(picture.getpixel((60, 100)))
    assert colours == [(255, 0, 0), (0, 0, 255)]


def test_only_one_original_is_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        Image.new("RGB", (300, 300)).save(tmp_path / f"{number}.png")
    held: list[Any] = []
    whole = prediction_files.opened

    def watched(path: str) -> Image.Image:
        assert sum(one() is not None for one in held) <= 1
        image = whole(path)
        held.append(weakref.ref(image))
        return image

    monkeypatch.setattr(prediction_files, "opened", watched)
    predict_files(network(), find_files(str(tmp_path))[0], tmp_path, {}, 1, None, 6, True)
    assert len(held) == 6


def test_what_was_found_before_an_interruption_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{number}.png")
    whole = prediction_files.opened

    def interrupted(path: str) -> Image.Image:
        if path.endswith("2.png"):
            raise KeyboardInterrupt
        return whole(path)

    monkeypatch.setattr(prediction_files, "opened", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_files(network(), find_files(str(tmp_path))[0], tmp_path, {}, 1, None, 1, False)
    assert rows(tmp_path).keys() == {"0.png", "1.png"}


def test_a_source_names_files_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.JPG", "sub/c.gif", ".hidden/d.png", "sub/.e.png", "notes.txt", "[x].png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert find_files(".") == (["./[x].png", "./a.JPG", "./b.png", "./sub/c.gif"], 1)
    assert find_files("*") == (["[x].png", "a.JPG", "b.png"], 1)
    assert find_files("**/*.gif") == (["sub/c.gif"], 0)
    assert find_files("[x].png") == (["[x].png"], 0) and find_files("notes.txt") == (["notes.txt"], 0)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"b.png\r\n\nsub/c.gif\n\xff.png")))
    assert find_files("-") == (["b.png", "sub/c.gif", "\udcff.png"], 0)


def test_names_of_files_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("[red]x.png", "\x1b[2Jy.png", "\udcff.png"):
        Image.new("RGB", (9, 9)).save(name, format="png")
    Path("\x1b]0;z.png").touch()
    found = predict_files(network(), find_files("*.png")[0], tmp_path, {}, 1, None, 4, True)
    prediction_files.show(found, Path("found"), 0)
    said = capsys.readouterr()
    assert "[red]x.png" in said.out and "\x1b" not in said.out + said.err and "\udcff" not in said.out
    assert len(found.rows) == len(rows(tmp_path)) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["source=nowhere"], "source=nowhere does not exist: give an image, a folder, a quoted glob, or -"),
        (["source=*.png"], "source=*.png names no file with the extension of an image, and 0 others"),
        (["source=photos/text"], "source=photos/text names no file with the extension of an image, and 1 others"),
        (["source=-"], "source=-: the standard input names no files"),
        ([], "source=… is missing: an image, a folder"),
        (["source=photos", "topk=11"], "topk=11 must lie between 1 and 10, the number of classes of run/"),
        (["source=photos", "batch_size=0"], "batch_size=0 must be 1 or more"),
        (["source=photos", "crop=left"], "crop=left must be center or null"),
        (["source=photos", "sorce=x"], "sorce=x: there is no such option; did you mean 'source'?"),
        (["source=photos", "output=photos", "overwrite=true"], "photos/x.png lies in photos, where the predictions"),
        (["source=photos", "output=used"], "used holds files already: set overwrite=true"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    options: list[str], said: str, trained: Path, command: Command, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    for name in ("photos/text/notes.txt", "used/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    Image.new("RGB", (9, 9)).save(tmp_path / "photos" / "x.png")
    before = sorted(tmp_path.rglob("*"))
    refused(command("run", *options, verb="predict"), said, program="stn.predict")
    assert sorted(tmp_path.rglob("*")) == before


def test_predictions_are_written_over_on_request_alone(trained: Path, command: Command, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    bare = shutil.copy(trained / "checkpoints" / "last.ckpt", tmp_path / "network.ckpt")
    assert command(str(bare), "source=x.png", verb="predict").returncode == 0
    refused(command(str(bare), "source=x.png", verb="predict"), "holds files already", program="stn.predict")
    found = command("predict", str(bare), "source=x.png", "overwrite=true", "pictures=false", verb="__main__")
    assert found.returncode == 0, found.stderr
    written = sorted(path.name for path in (tmp_path / "predictions").iterdir())
    assert written == ["predictions.csv", "predictions.json"]


def test_a_network_that_has_diverged_is_refused(trained: Path, command: Command, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")

    def diverge(content: dict[str, Any]) -> None:
        for weights in content["state_dict"].values():
            if weights.is_floating_point():
                weights.fill_(1e30)  # so that the scores are not finite

    for path in folder.glob("checkpoints/*.ckpt"):
        changed(path, diverge)
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    for verb, more in (("predict", ["source=x.png"]), ("evaluate", []), ("report", []), ("export", ["format=onnx"])):
        found = command("run", *more, verb=verb)
        refused(found, "the network has diverged, its scores are not finite", program=f"stn.{verb}")
    assert not (folder / "predictions").exists() and not (folder / "evaluation").exists()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.zeros(3, 32, 32), r"a tensor must be \(N, 3, H, W\) for this network, not \(3, 32, 32\)"),
        (lambda: torch.zeros(2, 1, 32, 32), r"a tensor must be \(N, 3, H, W\)"),
        (lambda: torch.zeros(2, 3, 32, 32, dtype=torch.int64), "uint8, or of floats in .*, not of torch.int64"),
        (lambda: torch.full((2, 3, 8, 8), 2.0), "floats must lie in .* not between 2 and 2"),
        (lambda: torch.full((2, 3, 8, 8), torch.nan), "floats must lie in .* not between nan and nan"),
        (lambda: [torch.zeros(3, 32, 32)], r"images\[0\] is not a readable image: it is of type Tensor; give a path"),
        (lambda: [Image.new("RGB", (9, 9)), 7], r"images\[1\] is not a readable image: it is of type int"),
        (lambda: 7, "images must be a path, a PIL image, an array, a list of those, or a tensor, not int"),
        (lambda: np.zeros((3, 32, 32), np.uint8), r"it is an array \(3, 32, 32\); give \(H, W\), or \(H, W, C\)"),
        (lambda: np.full((9, 9), 255.0), r"it has floats from 255 to 255; give floats in \[0, 1\], or uint8"),
        (lambda: np.zeros((9, 9), np.int64), "it is an array of int64; give uint8"),
        (lambda: Image.fromarray(np.full((9, 9), 3.5, np.float32)), "its values are floats from 3.5 to 3.5"),
        (lambda: Image.new("RGB", (0, 5)), "it has 0 x 5 pixels"),
        (lambda: "nowhere.png", "nowhere.png is not a readable image: No such file or directory"),
    ],
)
def test_what_is_no_image_raises_one_sentence(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        network().predict(make())
    assert "\n" not in str(error.value)


def test_other_arguments_that_are_wrong_raise_one_sentence() -> None:
    with pytest.raises(InputError, match="crop='left' must be None or one of center"):
        network().predict([], crop="left")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch_size=0 must be 1 or more"):
        network().predict([], batch_size=0)
    with pytest.raises(InputError, match="the network takes 5 channels, and an image has 1 to 4: give a tensor"):
        network(channels=5).predict("x.png")


def test_help_answers_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['stn.predict', '--help']\nfrom stn.predict import main\n"
        "try:\n    main()\nfinally:\n    assert not {'torch', 'PIL', 'rich'} & set(sys.modules)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert found.returncode == 0 and "topk=…" in found.stdout, found.stderr
