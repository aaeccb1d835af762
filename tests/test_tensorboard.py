"""Every tab of TensorBoard has data, and its page opens without an error."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from conftest import TINY
from tensorboard import default, program

from stn.config import compose
from stn.training import train

Get = Callable[..., Any]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where TensorBoard shows a folder with one run of two epochs, named run."""
    folder = tmp_path_factory.mktemp("outputs")
    train(compose([*TINY, "callbacks.progress=null", "callbacks.summary=null"], folder / "run"))
    server = program.TensorBoard(default.get_plugins())
    server.configure((None, "--logdir", str(folder), "--port", "0", "--load_fast", "false"))
    found = server.launch()
    patience = time.monotonic() + 60
    while not has_read(found) and time.monotonic() < patience:
        time.sleep(0.1)
    yield found


def has_read(address: str) -> bool:
    """Whether TensorBoard has read what a run writes last; it looks for a projector in a thread of its own."""
    images = fetch(address, "plugin/images/tags").get("run", ())
    return len(images) == 2 and fetch(address, "plugins_listing")["projector"]["enabled"]


def fetch(address: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(f"{address}data/{path}", data, {"Content-Type": "application/json"})) as answer:
        return json.load(answer)


def test_every_tab_has_data(address: str) -> None:
    tabs = {name for name, plugin in fetch(address, "plugins_listing").items() if plugin["enabled"]}
    assert tabs >= {"scalars", "custom_scalars", "images", "graphs", "distributions", "histograms", "hparams"}
    assert tabs >= {"timeseries", "projector"}
    scalars = fetch(address, "plugin/scalars/tags")["run"]
    assert {"accuracy/train", "accuracy/val", "loss/train", "loss/val", "transformer/scale_mean"} <= scalars.keys()
    images = fetch(address, "plugin/images/tags")["run"]
    assert images.keys() == {"warps/transformer", "wrong_or_right/confusion_matrix"}
    assert len(fetch(address, "plugin/images/images?run=run&tag=warps%2Ftransformer&sample=0")) == 2
    assert fetch(address, "plugin/graphs/info")["run"]["run_graph"]
    assert len(fetch(address, "plugin/histograms/tags")["run"]) == 6


def test_every_chart_of_the_layout_has_its_scalars(address: str) -> None:
    scalars = fetch(address, "plugin/scalars/tags")["run"]
    categories = fetch(address, "plugin/custom_scalars/layout")["category"]
    assert [category["title"] for category in categories] == ["accuracy and loss", "transformer"]
    charts = [chart for category in categories for chart in category["chart"]]
    assert len(charts) == 9
    for chart in charts:
        wanted = chart["multiline"]["tag"] if "multiline" in chart else chart["margin"]["series"][0].values()
        for pattern in wanted:
            assert any(re.match(pattern, tag) for tag in scalars), (chart["title"], pattern)


def test_the_projector_has_vectors_labels_and_pictures(address: str) -> None:
    embeddings = fetch(address, "plugin/projector/info?run=run")["embeddings"]
    assert [one["tensorName"] for one in embeddings] == ["images", "read by transformer", "features"]
    for one in embeddings:
        assert one["tensorShape"][0] == 20
        name = one["tensorName"].replace(" ", "%20")
        for kind, least in (("metadata", 100), ("sprite_image", 1000), ("tensor", 20 * 4)):
            with urlopen(f"{address}data/plugin/projector/{kind}?run=run&name={name}") as answer:
                assert len(answer.read()) >= least


def test_hparams_has_a_row_with_settings_and_results(address: str) -> None:
    metrics = [column["displayName"] for column in fetch(address, "plugin/hparams/experiment", {})["metricInfos"]]
    errors = ["pose error (pixels)", "median corner error (pixels)", "median angle error (degrees)"]
    assert metrics == ["test accuracy", "validation accuracy", *errors]
    wanted = {"allowedStatuses": ["STATUS_SUCCESS"], "startIndex": 0, "sliceSize": 10, "colParams": []}
    (row,) = fetch(address, "plugin/hparams/session_groups", wanted)["sessionGroups"]
    assert row["name"].startswith("run in outputs")
    assert row["hparams"]["warp"] == "Affine" and row["hparams"]["seed"] == 0 and row["hparams"]["epochs"] == 2
    assert not any("_target_" in name or "_partial_" in name for name in row["hparams"])
    assert len(row["metricValues"]) == 5


@pytest.mark.skipif(not shutil.which("chromium"), reason="there is no Chromium")
def test_the_page_opens_without_an_error_on_accuracy_and_loss(address: str, tmp_path: Path) -> None:
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    options += ["--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,3000"]
    found = subprocess.run(["chromium", *options, f"{address}#timeseries"], capture_output=True, text=True, timeout=120)
    said = [line for line in found.stderr.splitlines() if "CONSOLE" in line]
    assert not any("Error" in line or "Failed" in line for line in said), said
    groups = re.findall(r'class="group-title[^"]*"[^>]*>\s*([\w ]+?)\s*<', found.stdout)
    assert groups[:3] == ["Pinned", "accuracy", "loss"], groups
