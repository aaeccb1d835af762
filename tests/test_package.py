"""What the package needs to be imported, and what an installed copy carries."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment

import stn

BLOCKED = (
    "pytorch_lightning",
    "hydra",
    "omegaconf",
    "torchmetrics",
    "torchvision",
    "tensorboard",
    "matplotlib",
    "rich",
)


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True)


def test_the_layer_needs_torch_alone(tmp_path: Path) -> None:
    block = "".join(f"sys.modules[{name!r}] = None\n" for name in BLOCKED)
    code = (
        f"import sys\n{block}import stn, torch\n"
        "layer = stn.SpatialTransformer(stn.ConvLocalization())\n"
        "assert layer(torch.rand(2, 3, 32, 32)).shape == (2, 3, 32, 32)\n"
        "stn.LeNet5(), stn.WideConvNet(), stn.thetas(layer, torch.rand(2, 3, 32, 32))\n"
    )
    found = python(code, tmp_path)
    assert found.returncode == 0, found.stderr


def test_every_public_name_is_there() -> None:
    for name in stn.__all__:
        assert getattr(stn, name).__doc__, name
    assert dir(stn) == sorted(stn.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Warps'"):
        stn.Warps  # noqa: B018


@pytest.mark.parametrize("argument", [["--help"], ["--cfg", "job"]])
def test_help_and_config_answer_without_torch(argument: list[str], tmp_path: Path) -> None:
    code = (
        f"import sys; sys.argv = ['stn.train', *{argument}]\n"
        "from stn.train import main\ntry:\n    main()\nfinally:\n"
        "    assert not {'torch', 'pytorch_lightning', 'matplotlib'} & set(sys.modules), 'imported for nothing'\n"
    )
    found = python(code, tmp_path)
    assert found.returncode == 0, found.stderr
    assert "python -m stn.train" in found.stdout or "max_epochs: 50" in found.stdout


def test_the_version_is_that_of_the_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", {"stn-experiments": "1.2.3"}.__getitem__)
    assert stn.__version__ == "1.2.3"

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert stn.__version__ == "0+unknown"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed in it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    copied = ["pyproject.toml", "README.md", "LICENSE", "stn", "conf"]
    subprocess.run(["cp", "-r", *[str(ROOT / name) for name in copied], str(source)], check=True)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    made = subprocess.run([*pip, *build], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (wheel,) = folder.glob("*.whl")
    target = folder / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True, capture_output=True)
    return target


def test_a_wheel_carries_the_configs_and_the_packages(installed: Path) -> None:
    for folder, pattern in (("conf", "*.yaml"), ("stn", "*.py")):
        inside = installed / "stn" / "conf" if folder == "conf" else installed / folder
        carried = {str(path.relative_to(inside)) for path in inside.rglob(pattern)}
        assert carried == {str(path.relative_to(ROOT / folder)) for path in (ROOT / folder).rglob(pattern)}


@pytest.mark.parametrize("command", [["-m", "stn.train"], ["bin/stn", "train"]], ids=" ".join)
def test_an_installed_wheel_finds_its_configs(command: list[str], installed: Path, tmp_path: Path) -> None:
    program = [str(installed / part) if part.startswith("bin") else part for part in command]
    shown = subprocess.run(
        [sys.executable, *program, "--cfg", "job"],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0 and "max_epochs: 50" in shown.stdout, shown.stderr
