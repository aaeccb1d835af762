"""What the package needs to be imported, and what its archives and an installed copy carry."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, TINY, environment
from packaging.requirements import Requirement
from packaging.version import Version

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


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == version


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-lowest.txt"])
def test_every_dependency_is_pinned_to_a_version_that_is_admitted(file: str) -> None:
    """In constraints-lowest.txt to the lowest one, so that the tests show that it is enough."""
    lines = [Requirement(line) for line in (ROOT / file).read_text().splitlines()]
    pins = {pin.name: Version(next(iter(pin.specifier)).version) for pin in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(extras["export"]) < set(extras["dev"])
    for dependency in map(Requirement, [*project["dependencies"], *extras["dev"]]):
        pin = pins[dependency.name]
        assert pin in dependency.specifier, dependency
        (floor,) = (Version(part.version) for part in dependency.specifier if part.operator == ">=")
        if "lowest" in file:
            assert pin.release[: len(floor.release)] == floor.release, dependency


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive of this checkout, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("archives")
    source = folder / "source"
    ours = ["pyproject.toml", "MANIFEST.in", "Makefile", "README.md", "LICENSE", "constraints.txt"]
    ours += ["constraints-lowest.txt", "stn", "conf", "tests", "docs", "notebooks", ".ci"]
    source.mkdir()
    subprocess.run(["cp", "-r", *[str(ROOT / name) for name in ours], str(source)], check=True)
    for litter in ("outputs/run/config.yaml", "data/batch.py", "conf/notes.txt", "stn/layers/weights.pt", "build/x.py"):
        (source / litter).parent.mkdir(parents=True, exist_ok=True)
        (source / litter).touch()
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (archive,) = folder.glob("*.tar.gz")
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(archive)]
    made = subprocess.run([sys.executable, "-m", "pip", "--quiet", *build], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (wheel,) = folder.glob("*.whl")
    return archive, wheel


def below(folder: str, pattern: str) -> set[str]:
    """The files of this checkout in a folder, from its root."""
    return {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob(pattern)}


def test_the_source_archive_holds_what_builds_and_tests_the_package(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as archive:
        held = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {name for name in held if name.startswith("stn_experiments.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    top = {"LICENSE", "MANIFEST.in", "Makefile", "README.md", "pyproject.toml"}
    pins = {"constraints.txt", "constraints-lowest.txt"}
    package = below("stn", "*.py") | below("stn", "*.html") | {"stn/py.typed"}
    assert held - made == top | pins | package | below("conf", "*.yaml") | below("tests", "*.py")


def test_the_wheel_holds_the_packages_and_their_configs(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        held = set(wheel.namelist())
        (metadata,) = (name for name in held if name.endswith(".dist-info/METADATA"))
    about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}
    configs = {f"stn/{name}" for name in below("conf", "*.yaml")}
    package = (
        below("stn", "*.py") | below("stn", "*.html") | {"stn/py.typed"}
    )  # by which type checkers know that it has types
    assert held == package | configs | {metadata.replace("METADATA", name) for name in about}


@pytest.fixture(scope="module")
def installed(archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed in it."""
    target = tmp_path_factory.mktemp("installed")
    install = ["install", "--no-deps", "--no-index", "--target", str(target), str(archives[1])]
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *install], check=True, capture_output=True)
    return target


def typed(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of the installed wheel, in a folder that is no checkout."""
    variables = environment() | {"PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, *words], cwd=folder, env=variables, capture_output=True, text=True)


def test_an_installed_wheel_finds_its_configs(installed: Path, tmp_path: Path) -> None:
    shown = typed(installed, tmp_path, "-m", "stn.train", "--cfg", "job")
    assert shown.returncode == 0 and "max_epochs: 50" in shown.stdout, shown.stderr


def test_an_installed_wheel_trains(installed: Path, tmp_path: Path) -> None:
    settings = ["experiment=demo", *TINY, "model=convnet", "trainer.max_epochs=1", "hydra.run.dir=run"]
    trained = typed(installed, tmp_path, str(installed / "bin" / "stn"), "train", *settings)
    assert trained.returncode == 0, trained.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["epochs"] == 1
