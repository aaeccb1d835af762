"""An exported file computes what the network does; one that does not, or that was changed, is told in one sentence."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from conftest import TINY, Command
from safetensors import safe_open
from safetensors.torch import save
from test_bad_input import refused
from torch import Tensor

import stn
from stn import export, exporting
from stn.build import build_classifier, build_data
from stn.config import compose
from stn.errors import InputError
from stn.formats import ExportedNetwork, open_exported, write_onnx, write_pt2, write_torchscript
from stn.training import train

GRAPHS = {"onnx": "model.onnx", "torchscript": "model.pt", "pt2": "model.pt2"}
WARPS = ["affine", "affine_exponential", "attention", "bspline", "diffeomorphic", "log_polar", "projective"]
WARPS += ["rotation", "rotation_classes", "similarity", "tps", "translation"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with 70 test images."""
    folder = tmp_path_factory.mktemp("outputs") / "run"
    quiet = ["callbacks.warps=null", "callbacks.progress=null", "data.test_images=70", "data.flip=true", "tta=mirror"]
    train(compose([*TINY, *quiet], folder))
    return folder


def pixels(count: int) -> Tensor:
    """Images with large patches of colour."""
    return torch.nn.functional.interpolate(255 * torch.rand(count, 3, 4, 4), 32, mode="bilinear").to(torch.uint8)


def loaded(path: Path) -> tuple[Callable[[Tensor], Any], dict[str, Any]]:
    """An exported file as somebody without this project opens it, and its metadata."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path)
        metadata = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
        return lambda images: [torch.from_numpy(x) for x in session.run(None, {"pixels": images.numpy()})], metadata
    extra = {"metadata.json": ""}
    if path.suffix == ".pt":
        module: Any = torch.jit.load(path, _extra_files=extra)
    else:
        module = torch.export.load(path, extra_files=extra).module()
    return module, json.loads(extra["metadata.json"])


@pytest.mark.parametrize("format", GRAPHS)
def test_a_file_computes_what_the_network_does(format: str, trained: Path, command: Command, tmp_path: Path) -> None:
    output = tmp_path / GRAPHS[format]
    found = command(str(trained), f"format={format}", f"output={output}", "check=all", verb="export")
    assert found.returncode == 0 and "compared on 70 of the 70 test images" in found.stdout, found.stderr
    assert "pixels (N, 3, 32, 32), uint8 -> probabilities (N, 10)\n" in found.stdout and found.stderr == ""
    run = stn.Run.open(trained)
    assert run.classifier.tta == "mirror"
    run.classifier.tta = "none"  # unless it is asked for
    compute, metadata = loaded(output)
    for count in (1, 64):
        images = pixels(count)
        outputs = compute(images)
        probabilities = outputs if isinstance(outputs, Tensor) else outputs[0]
        torch.testing.assert_close(probabilities, run.classifier(images).softmax(1), atol=1e-4, rtol=0)
    assert metadata["classes"] == run.classes and (metadata["channels"], metadata["image_size"]) == (3, 32)
    assert metadata["mean"] == pytest.approx(run.classifier.normalization.mean.flatten().tolist())
    assert metadata["std"] == pytest.approx(run.classifier.normalization.std.flatten().tolist())
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("format", GRAPHS)
def test_float_pixels_two_views_and_theta(format: str, trained: Path, tmp_path: Path) -> None:
    run = stn.Run.open(trained)
    path = tmp_path / GRAPHS[format]
    exporting.export(run, format=format, dtype="float32", theta=True, tta="mirror", check=3, output=str(path))
    compute, metadata = loaded(path)
    images = pixels(5) / 255
    probabilities, theta = compute(images)
    torch.testing.assert_close(probabilities, run.classifier(images).softmax(1), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        theta, stn.thetas(run.classifier.net, run.classifier.normalization(images))["transformer"]
    )
    assert metadata["tta"] == "mirror" and metadata["dtype"] == "float32"
    assert metadata["theta"] == [{"transformer": "transformer", "warp": "Affine", "numbers": 6}]
    with pytest.raises(Exception, match=r"dtype|data type"):  # they would be taken for another brightness
        compute(pixels(5))


def test_onnx_says_its_opset_and_names_and_no_paths_of_the_machine(trained: Path, tmp_path: Path) -> None:
    for opset in (18, 20):
        path = tmp_path / f"{opset}.onnx"
        exporting.export(stn.Run.open(trained), format="onnx", theta=True, opset=opset, check=2, output=str(path))
        model = onnx.load(path)
        assert [(used.domain, used.version) for used in model.opset_import] == [("", opset)]
        assert [value.name for value in model.graph.output] == ["probabilities", "theta"]
        assert all(value.type.tensor_type.shape.dim[0].dim_param == "batch" for value in model.graph.output)
        assert b"classifier.py" not in path.read_bytes()


def random_network(*overrides: str) -> ExportedNetwork:
    """An untrained network whose transformers move every image in its own way, and whose probabilities differ."""
    config = compose([*TINY, *overrides], "run")
    classifier = build_classifier(config, build_data(config))
    for transformer in stn.transformers(classifier.net).values():
        torch.nn.init.normal_(transformer.head.weight, std=0.1)
    for layer in classifier.net.modules():
        if isinstance(layer, torch.nn.Linear) and layer.out_features == 10:
            torch.nn.init.normal_(layer.weight, std=3.0)
    classifier.freeze()
    return ExportedNetwork(classifier, theta=bool(stn.transformers(classifier.net)))


def difference(network: ExportedNetwork, path: Path) -> float:
    return exporting.largest_difference(network, open_exported(path), pixels(67))


@pytest.mark.parametrize("warp", WARPS)
def test_every_warp_runs_in_onnxruntime_and_torchscript(warp: str, tmp_path: Path) -> None:
    network = random_network(f"model/warp={warp}")
    assert network(pixels(64))[0].std(dim=0).max() > 0.02  # saying the same of all images would hide a difference
    write_onnx(network, pixels(2), tmp_path / "model.onnx", {})
    write_torchscript(network, pixels(2), tmp_path / "model.pt", {})
    assert difference(network, tmp_path / "model.onnx") < 1e-4
    assert difference(network, tmp_path / "model.pt") < 1e-4


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.placement=none"],
        ["model.placement=features"],
        ["model.placement=deep"],
        ["model.placement=parallel", "model.transformer.num_looks=2", "model.transformer.padding=[0.1,0.2,0.3]"],
        ["model.placement=shared", "model.transformer.supersample=2", "model.transformer.padding=reflection"],
        ["model=wide", "model.classifier.widths=[8,8,8]", "model.transformer.padding=zeros"],
        ["model/localization=keypoints"],
    ],
    ids=" ".join,
)
def test_every_placement_runs_in_onnxruntime_and_torchscript(overrides: list[str], tmp_path: Path) -> None:
    network = random_network(*overrides)
    write_onnx(network, pixels(2), tmp_path / "model.onnx", {})
    write_torchscript(network, pixels(2), tmp_path / "model.pt", {})
    assert difference(network, tmp_path / "model.onnx") < 1e-4
    assert difference(network, tmp_path / "model.pt") < 1e-4


@pytest.mark.parametrize("format", GRAPHS)
@pytest.mark.parametrize("tta", ["six", "turns", "poses", "unmirrored_poses"])
def test_views_are_exported_for_batches_of_any_size(
    tta: str, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stn.classifier.TURNS", 3)  # twelve take a minute
    network = random_network("model/warp=rotation_classes", f"tta={tta}")
    path = tmp_path / GRAPHS[format]
    {"onnx": write_onnx, "torchscript": write_torchscript, "pt2": write_pt2}[format](network, pixels(2), path, {})
    assert difference(network, path) < 1e-4


@pytest.mark.parametrize("size", [0.1, 3.0, 20.0])
def test_the_exponential_is_torchs(size: float) -> None:
    from stn.formats import exponential

    matrix = torch.nn.functional.pad((2 * torch.rand(500, 6) - 1) * size, (0, 3)).view(-1, 3, 3)
    exact = torch.linalg.matrix_exp(matrix.double())
    error = (exponential(matrix) - exact).abs().amax((1, 2)) / exact.abs().amax((1, 2))
    assert error.max() < 2e-4 * max(1, size / 4)


def test_a_trace_keeps_the_bounds_of_points() -> None:
    """Traced from points near the image, it must still read at those that are far away or not finite."""
    image, points = torch.rand(1, 1, 4, 4), torch.zeros(1, 2, 2, 2)
    traced = torch.jit.trace(stn.sample, (image, points))
    far = torch.tensor([[[[1e30, 0], [torch.nan, 0]], [[0, -torch.inf], [0, 0]]]])
    torch.testing.assert_close(traced(image, far), stn.sample(image, far))


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of the command with the arguments given."""
    monkeypatch.setattr(sys, "argv", ["stn.export", *arguments])
    try:
        export.main()
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code
    return 0


def test_a_file_that_computes_something_else_is_not_kept(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = exporting.write_exported

    def brighter(path: Path, run: stn.Run, network: ExportedNetwork, *others: Any) -> None:
        network.normalization.mean -= 0.5
        write(path, run, network, *others)
        network.normalization.mean += 0.5

    monkeypatch.setattr(exporting, "write_exported", brighter)
    old = tmp_path / "model.pt"
    old.write_text("the file before")
    assert typed(monkeypatch, str(trained), "format=torchscript", f"output={old}", "overwrite=true") == 1
    said = capsys.readouterr().err
    assert said.startswith(f"stn.export: {old} was not written: its outputs differ by up to ") and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == [old] and old.read_text() == "the file before"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "format=… is missing: onnx, torchscript, pt2"),
        (["format=tflite"], "format=tflite must be onnx, torchscript, pt2 or safetensors"),
        (["format=safetensors", "dtype=float32"], "dtype=float32 does nothing with format=safetensors: leave it out"),
        (["format=safetensors", "theta=true"], "theta=true does nothing with format=safetensors"),
        (["format=pt2", "opset=18"], "opset=18 does nothing with format=pt2: leave it out"),
        (["format=onnx", "opset=16"], "opset=16 must lie between 18 and 23"),
        (["format=onnx", "check=0"], "check=0 must be 1 or more, or all"),
        (["format=onnx", "output=model.pt"], "output=model.pt must end in .onnx"),
        (
            ["format=onnx", "output=/dev/null/new/model.onnx"],
            "/dev/null/new/model.onnx cannot be written: give another file by output=…",
        ),
        (
            ["format=onnx", "data.batchsize=3"],
            "data.batchsize: data has no key 'batchsize'; did you mean",
        ),
        (["format=onnx", "data.test_images=0"], "data: train_images 60 and test_images 0 must be 2 and 1 or more"),
    ],
)
def test_what_cannot_be_exported(
    options: list[str],
    said: str,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = set(trained.rglob("*"))
    assert typed(monkeypatch, str(trained), *options) == 2
    found = capsys.readouterr().err
    assert found.startswith(f"stn.export: {said}") and found.count("\n") == 1
    assert set(trained.rglob("*")) == before


def test_nothing_is_written_over_unless_asked(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("mine")
    assert typed(monkeypatch, str(trained), "format=safetensors", f"output={path}") == 2
    assert f"{path} exists already: set overwrite=true, or output=… to another file" in capsys.readouterr().err
    assert path.read_text() == "mine"
    assert typed(monkeypatch, str(trained), "format=safetensors", f"output={path}", "overwrite=true") == 0
    assert stn.Run.open(path).epoch == 2


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnxscript"), ("safetensors", "safetensors")])
def test_a_missing_package_is_named_with_the_extra_that_has_it(
    format: str,
    package: str,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert typed(monkeypatch, str(trained), f"format={format}") == 2
    assert capsys.readouterr().err == f'stn.export: {package} is not installed: pip install ".[export]"\n'


def test_safetensors_without_its_package_is_no_broken_file(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(InputError, match=r"^safetensors is not installed: pip install"):
        stn.Run.open(exported)


def test_theta_needs_a_transformer(trained: Path) -> None:
    run = stn.Run.open(trained)
    del run.classifier.net.transformer
    with pytest.raises(InputError, match="theta=true needs a transformer, and this network has none: leave it out"):
        exporting.export(run, format="onnx", theta=True)


def test_a_checkpoint_without_its_data_is_compared_on_random_images(trained: Path, tmp_path: Path) -> None:
    alone = tmp_path / "network.ckpt"
    alone.write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes())
    found = exporting.export(stn.Run.open(alone), format="torchscript", check=5)
    assert found.path == tmp_path / "export" / "model.pt"
    assert found.images.startswith("5 random images (no test set: ") and found.difference < 1e-4


# safetensors


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    """The run as a .safetensors file, in the run's folder."""
    return exporting.export(stn.Run.open(trained), format="safetensors", check="all").path


def test_safetensors_opens_as_the_run(exported: Path, trained: Path, tmp_path: Path, command: Command) -> None:
    run, again = stn.Run.open(trained), stn.Run.open(exported)
    assert exported == trained / "export" / "model.safetensors"
    assert (again.classes, again.epoch, again.folder) == (run.classes, run.epoch, run.folder)
    images = pixels(64)
    assert torch.equal(again.classifier(images), run.classifier(images))
    with safe_open(exported, "pt") as file:
        assert json.loads(file.metadata()["classes"]) == run.classes
        assert json.loads(file.metadata()["mean"]) == pytest.approx(
            run.classifier.normalization.mean.flatten().tolist()
        )
    found = command(str(exported), verb="evaluate")
    assert found.returncode == 0 and f"{run.metrics['test_loss']:.4g}" in found.stdout, found.stderr
    alone = tmp_path / "network.safetensors"
    alone.write_bytes(exported.read_bytes())
    refused(command(str(alone), verb="evaluate"), "is not in the folder of a run", program="stn.evaluate")


Content = dict[str, Any]
Weights = dict[str, Tensor]


def foreign(content: Content, weights: Weights) -> None:
    content["hyper_parameters"]["model"]["warp"] = {"_target_": "os.system", "command": "touch canary"}


def foreign_optimizer(content: Content, weights: Weights) -> None:
    content["hyper_parameters"]["optimizer"] = {"_target_": "torch.hub.load", "repo_or_dir": "."}


def interpolated(content: Content, weights: Weights) -> None:
    content["hyper_parameters"]["model"]["warp"] = "${oc.env:HOME}"


def narrow(content: Content, weights: Weights) -> None:
    weights["net.transformer.head.weight"] = torch.zeros(6, 3)


def fewer(content: Content, weights: Weights) -> None:
    del weights["net.transformer.head.weight"]


def wide(content: Content, weights: Weights) -> None:
    content["hyper_parameters"]["model"]["classifier"]["hidden"] = 2**40


def large_images(content: Content, weights: Weights) -> None:
    content["hyper_parameters"]["image_size"] = 2**30


def many_looks(content: Content, weights: Weights) -> None:
    content["hyper_parameters"]["model"]["transformer"]["num_looks"] = 10**9


def long_text(content: Content, weights: Weights) -> None:
    content["more"] = "x" * 2**20


def deep(content: Content, weights: Weights) -> None:
    content["hyper_parameters"]["model"]["warp"] = json.loads("[" * 100 + "]" * 100)


def newer(content: Content, weights: Weights) -> None:
    content["stn"]["format"] += 1


def wordy(content: Content, weights: Weights) -> None:
    content["stn"]["epoch"] = "two"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (foreign, "_target_=os.system is not a part of this version of stn that a file may name"),
        (foreign_optimizer, "_target_=torch.hub.load is not a part of this version of stn"),
        (interpolated, "would be evaluated"),
        (narrow, "has weights that do not fit the network it describes"),
        (fewer, "has weights that do not fit the network it describes"),
        (wide, "has weights that do not fit the network it describes"),
        (large_images, "its images are too large"),
        (many_looks, "num_looks must lie between 1 and 16"),
        (long_text, "its description is longer than 1,048,576 letters"),
        (deep, "nested more than 20 deep"),
        (newer, "was written by a later version of stn (format 4"),
        (wordy, "epoch must be int"),
        (lambda content, weights: content.clear(), "is not a checkpoint of stn.train"),
    ],
)
def test_a_hostile_safetensors_file_is_told(
    change: Callable[[Content, Weights], None],
    said: str,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with safe_open(exported, "pt") as file:
        content = json.loads(file.metadata()["network"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(content, weights)
    Path("evil.safetensors").write_bytes(save(weights, {"network": json.dumps(content)}))
    with pytest.raises(InputError) as error:
        stn.Run.open("evil.safetensors")
    assert said in str(error.value) and "evil.safetensors" in str(error.value)
    assert not Path("canary").exists()


def huge_header(content: bytes) -> bytes:
    return (2**62).to_bytes(8, "little") + content[8:]


def huge_tensor(content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(b'"shape":[10]', b'"shape":[1099511627776]')
    assert len(header) != length
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content[:4],
        lambda content: b"",
        lambda content: bytes(range(256)) * 100,
        lambda content: content.replace(b"hyper_parameters", b"hyper\\uparameters", 1),
        huge_header,
        huge_tensor,
    ],
    ids=["half", "one byte less", "four bytes", "empty", "noise", "no JSON", "huge header", "huge tensor"],
)
def test_a_broken_safetensors_file_is_told(change: Callable[[bytes], bytes], exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(change(exported.read_bytes()))
    with pytest.raises(
        InputError, match=r"broken.safetensors cannot be read, it may be incomplete \(.+\): give another"
    ):
        stn.Run.open(path)
