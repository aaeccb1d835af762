"""The house: which module may import which, and how long a main may be."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

from stn.__main__ import VERBS

MODULES = sorted((ROOT / "stn").rglob("*.py"))
MAINS = [path for path in MODULES if '__name__ == "__main__"' in path.read_text()]


def name(path: Path) -> str:
    """The module in a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """The modules of this project that a file imports, anywhere in it but for type checking."""
    known = {name(module) for module in MODULES}
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & known - {"stn"}


def test_the_mains_are_known_and_short() -> None:
    verbs = {f"stn.{verb}" for verb in VERBS} - {"stn.benchmark"}
    assert {name(path) for path in MAINS} == verbs | {"stn.__main__", "stn.benchmark.__main__"}
    for path in MAINS:
        assert len(path.read_text().splitlines()) <= 80, path


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_module_imports_a_main(path: Path) -> None:
    assert not imports(path) & {name(main) for main in MAINS}


@pytest.mark.parametrize("path", sorted((ROOT / "stn" / "layers").glob("*.py")), ids=name)
def test_the_layers_import_nothing_but_layers(path: Path) -> None:
    assert all(module.startswith("stn.layers") for module in imports(path))


# Each line may import from the lines above it alone, and within itself without a circle.
FLOORS = (
    ["stn.layers"],
    ["stn.errors", "stn.muon", "stn.process"],
    ["stn.networks", "stn.optimization", "stn.data", "stn.metrics", "stn.measures", "stn.check", "stn.figures"],
    ["stn.placement", "stn.classifier", "stn.colocalizer", "stn.callbacks", "stn.config", "stn.robustness"],
    ["stn.cli", "stn.checkpoint_io", "stn.csv_logger", "stn.tensorboard_logger", "stn.hyperparameters"],
    ["stn.build", "stn.untrusted", "stn.provenance", "stn.options"],
    ["stn.views", "stn.prediction", "stn.sources", "stn.run", "stn.resuming", "stn.training", "stn.scoring"],
    ["stn.evaluation", "stn.evaluation_figures", "stn.evaluation_files", "stn.prediction_files", "stn.colocalization"],
    [
        "stn.formats",
        "stn.exporting",
        "stn.results",
        "stn.results_page",
        "stn.results_tables",
        "stn.reference",
        "stn.runs",
        "stn.differences",
        "stn.significance",
    ],
    ["stn.comparison", "stn.comparison_report", "stn.reporting"],
    ["stn.sweep", "stn.jobs", "stn.__main__"],
    ["stn.train"],
    [
        "stn.evaluate",
        "stn.predict",
        "stn.export",
        "stn.compare",
        "stn.report",
        "stn.record",
        "stn.colocalize",
        "stn.benchmark",
    ],
)


def floor(module: str) -> int:
    """The line of `FLOORS` that a module is in."""
    return next(
        number
        for number, parts in enumerate(FLOORS)
        if any(module == part or module.startswith(f"{part}.") for part in parts)
    )


@pytest.mark.parametrize("path", [path for path in MODULES if name(path) != "stn"], ids=name)
def test_all_arrows_go_one_way(path: Path) -> None:
    for module in imports(path):
        assert floor(module) <= floor(name(path)), module


def test_no_imports_go_in_a_circle() -> None:
    left = {name(path): imports(path) - {name(path)} for path in MODULES if path.name != "__init__.py"}
    while left:
        free = {module for module, needs in left.items() if not needs & left.keys()}
        assert free, left
        left = {module: needs for module, needs in left.items() if module not in free}
