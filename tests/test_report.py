"""The page of a run: what it holds, that it loads nothing, that no text is markup, and that its controls work."""

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from conftest import TINY, Command, started
from PIL import Image
from test_bad_input import refused

import stn
from stn.config import compose
from stn.evaluation import evaluate
from stn.evaluation_files import write_files
from stn.figures import Reading, evenly
from stn.reporting import page as reporting_page
from stn.reporting.about import facts
from stn.reporting.charts import Axis, Line, chart, share_axis
from stn.reporting.evaluated import TICKS, classes, confusion
from stn.reporting.page import make_page
from stn.reporting.parts import cell, table
from stn.robustness import SWEEPS
from stn.run import Run
from stn.training import train

QUIET = ["callbacks.progress=null", "callbacks.summary=null", "logger=csv"]
NAMES = ["<script>alert(1)<", '"><img src=x onerror=alert(1)>', "&lt;b&gt; $title"]  # of folders, so without a slash
SCRIPT = "<script>alert(1)</script>"


class Page(HTMLParser):
    """All tags of a page with their attributes, and its text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:  # not within a script or a style
            self.text += data

    def named(self, name: str) -> list[dict[str, str | None]]:
        """The attributes of all tags of one name."""
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs, with two transformers, on images of classes whose names look like markup."""
    folder = tmp_path_factory.mktemp("runs")
    for split in ("train", "test"):
        for label, name in enumerate(NAMES):
            (folder / "photos" / split / name).mkdir(parents=True)
            for index in range(8):
                colour = (80 * label, 10 * index, 90)
                Image.new("RGB", (32, 32), colour).save(folder / "photos" / split / name / f"{index}.png")
    data = ["data=image_folder", f"data.root={folder / 'photos'}", "data.batch_size=8", "callbacks.warps.images=4"]
    train(compose([*TINY[4:], *data, *QUIET, "callbacks=best_epoch", "model.placement=parallel"], folder / "run"))
    return folder / "run"


@pytest.fixture(scope="module")
def path(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of that run, as the command makes it."""
    folder = tmp_path_factory.mktemp("pages")
    process = started(folder, "report", (str(trained), "output=page.html"))
    process.join(timeout=300)
    assert process.exitcode == 0, (folder / ".stderr").read_text()
    assert "page.html, 0." in (folder / ".stdout").read_text()
    return folder / "page.html"


@pytest.fixture(scope="module")
def page(path: Path) -> Page:
    return Page(path.read_text())


def test_the_page_loads_nothing_from_elsewhere(path: Path, page: Page) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "srcset", "href", "data", "poster", "action", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("data:", "#")), (tag, name)
    assert not re.search(r"@import|url\(", path.read_text())
    (policy,) = [meta["content"] for meta in page.named("meta") if meta.get("http-equiv")]
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")


def test_every_image_is_described_and_all_headings_are_in_order(page: Page) -> None:
    images = page.named("img")
    assert len(images) > 2 * 20
    for image in images:
        assert image["alt"] and str(image["src"]).startswith("data:image/")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for landmark in ("header", "nav", "main", "footer"):
        assert len(page.named(landmark)) == 1
    sections = [section["id"] for section in page.named("section")]
    assert [link["href"] for link in page.named("a")] == [f"#{name}" for name in sections]


def test_names_of_classes_are_text(page: Page) -> None:
    for name in NAMES:
        assert page.text.count(name) >= 3
    assert len(page.named("script")) == 1 and not any("onerror" in attributes for _, attributes in page.tags)
    tagged = Page(table([SCRIPT], [[SCRIPT, SCRIPT]], SCRIPT))
    numbers = {"classes": {SCRIPT: {"count": 1, "accuracy": 1.0, "precision": None}}, "confusion": [[1]]}
    black = Image.new("RGB", (2, 2))
    shown = Page(cell(Reading(black, None, black, SCRIPT, False), "over"))
    charted = Page(chart(Axis(SCRIPT, 0, 1, {0: SCRIPT}), share_axis(SCRIPT), [], SCRIPT, [(0, SCRIPT), (1, SCRIPT)]))
    listed = [Page(str(show(numbers))) for show in (classes, confusion)]
    for found in (tagged, shown, charted, *listed):
        assert not found.named("script") and SCRIPT in found.text


def test_the_page_says_what_the_run_found(trained: Path, page: Page) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    assert f"{metrics['test_accuracy']:.2%} accuracy on 24 test images" in page.text
    assert f"{metrics['parameters']:,} parameters" in page.text and "2 epochs of 16 images" in page.text
    assert f"of epoch {metrics['tested_epoch']}, best.ckpt" in page.text
    assert (trained / "config.yaml").read_text() in page.text
    assert "an affine transformer, two on the image, side by side" in page.text
    assert sum("hidden" in image for image in page.named("img")) == 2  # of two epochs, for each transformer
    assert "not finished" not in page.text and "left out" not in page.text


def test_a_report_on_other_data_says_what_was_trained_on(trained: Path) -> None:
    run = Run.open(trained)
    own = facts(run, run.settings(), {"transformers": {}}, {})["data"]
    found = facts(run, run.settings(["data.root=new"]), {"transformers": {}}, {})["data"]
    assert own.startswith("image folder in /") and found == f"image folder in new; trained on {own}"


def test_a_file_is_replaced_only_if_asked(trained: Path, path: Path, command: Command, tmp_path: Path) -> None:
    shutil.copy(path, tmp_path / "page.html")
    arguments = [str(trained), "output=page.html", "robustness=false"]
    said = "page.html exists already: set overwrite=true, or output=… to another file"
    refused(command(*arguments, verb="report"), said, program="stn.report")
    assert (tmp_path / "page.html").read_text() == path.read_text()
    found = command(*arguments, "overwrite=true", verb="report")
    assert found.returncode == 0, found.stderr
    assert "It was left out of this report by robustness=false." in Page((tmp_path / "page.html").read_text()).text


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("output=page.pdf", "output=page.pdf must end in .html"),
        ("output=/dev/null/page.html", "/dev/null/page.html cannot be written: give another file by output=…"),
        ("robustness=often", "robustness=often must be true or false"),
        ("data.root=nowhere", "nowhere"),
    ],
)
def test_a_wrong_option_is_refused(option: str, said: str, trained: Path, command: Command) -> None:
    refused(command(str(trained), option, verb="report"), said, program="stn.report")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("figures/warps/transformer.0_epoch_001.png", "no picture"),
        ("metrics.csv", "epoch,val/accuracy\n0,high\n"),
        ("environment.json", "[1]"),
        ("environment.json", '{"resumed": [3]}'),
    ],
)
def test_a_file_of_the_run_that_cannot_be_read_is_named(
    name: str, content: str, trained: Path, command: Command, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    refused(command("run", verb="report"), f"run/{name}: ", program="stn.report")


def test_what_a_run_does_not_have_is_left_out(tmp_path: Path) -> None:
    train(compose([*TINY, *QUIET, "callbacks=best_epoch", "logger=none", "model.placement=none"], tmp_path / "run"))
    (tmp_path / "run" / "metrics.json").unlink()
    (tmp_path / "run" / "checkpoints" / "best.ckpt").unlink()
    run = stn.Run.open(tmp_path / "run")
    page = Page(make_page(run, run.settings(), robustness=False))
    assert "The training is not finished: this is the network after epoch 2 of 2." in page.text
    assert "The run has no metrics.csv, so there are no curves." in page.text
    assert "The network has no transformer: it reads the whole image." in page.text
    names = [section["id"] for section in page.named("section")]
    assert not {"examples", "means"} & set(names) and "mistakes" in names
    assert not page.named("select") and "ConvNet with no transformer on shapes" in page.text


def test_what_is_read_of_a_canvas_is_smaller_than_it(tmp_path: Path) -> None:
    window = (
        "arm=window",
        "model=wide",
        "model.classifier.widths=[4,4,4]",
        "data/distortion=clutter",
        "data.flip=false",
    )
    train(compose([*TINY, *QUIET, *window, "trainer.max_epochs=1"], tmp_path / "run"))
    run = stn.Run.open(tmp_path / "run")
    page = Page(make_page(run, run.settings(), robustness=False))
    assert "Class means" in page.text
    assert "0 ± 0" in page.text, "a window does not turn, not even by a rounding"


def test_a_run_without_pictures_says_so(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "figures")
    run = stn.Run.open(tmp_path / "run")
    text = make_page(run, run.settings(), robustness=False)
    assert "The run has kept no pictures of its epochs." in text and 'id="examples"' in text


def test_an_evaluation_of_the_same_network_is_read_and_another_is_not(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    run = stn.Run.open(tmp_path / "run")
    evaluation = evaluate(run, run.settings())
    evaluation.numbers["robustness"] = {
        name: [{"value": value, "accuracy": 0.12344} for value in SWEEPS[name].values] for name in TICKS
    }
    evaluation.numbers["robustness_images"] = evaluation.numbers["images"]
    write_files(evaluation, tmp_path / "run" / "evaluation")
    text = make_page(run, run.settings())
    assert "-135: 12.34%" in text and "The accuracy on the test images after" in text
    evaluation.numbers["loss"] += 0.001
    write_files(evaluation, tmp_path / "run" / "evaluation")
    monkeypatch.setattr(reporting_page, "SWEEP_IMAGES", 7)
    text = make_page(run, run.settings())
    assert "12.34%" not in text and "The accuracy on 7 of the test images after" in text


@pytest.mark.parametrize(("count", "most"), [(1, 30), (30, 30), (31, 30), (500, 30), (7, 2)])
def test_frames_are_chosen_evenly_with_the_first_and_the_last(count: int, most: int) -> None:
    frames = [(epoch, Path(f"{epoch}.png")) for epoch in range(count)]
    chosen = [epoch for epoch, _ in evenly(frames, most)]
    assert len(chosen) == min(count, most) and (chosen[0], chosen[-1]) == (0, count - 1)
    steps = [after - before for before, after in pairwise(chosen)]
    assert not steps or max(steps) - min(steps) <= 1


def test_a_chart_has_its_points_where_its_axes_say() -> None:
    axes = Axis("x", 0, 10, {0: "0", 10: "10"}), Axis("y", 0, 1, {0: "0", 1: "1"})
    drawn = Page(chart(*axes, [Line("val", [(0, 0), (5, 0.5), (10, 1), (20, float("nan"))])], "a line"))
    (line,) = drawn.named("polyline")
    first, middle, last = [tuple(map(float, one.split(","))) for one in str(line["points"]).split()]
    ticks = {(text["class"], float(str(text["x"])), float(str(text["y"]))) for text in drawn.named("text")[:4]}
    assert {(kind, x) for kind, x, _ in ticks if kind == "x"} == {("x", first[0]), ("x", last[0])}
    assert {(kind, y) for kind, _, y in ticks if kind == "y"} == {("y", first[1]), ("y", last[1])}
    assert first[0] < last[0] and first[1] > last[1]  # upwards
    assert middle == pytest.approx([(one + other) / 2 for one, other in zip(first, last, strict=True)], abs=0.1)


@pytest.fixture(scope="module")
def browser(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The page in a browser."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        browser.open(path)
        yield browser


def test_the_browser_requests_nothing_but_the_file_and_finds_no_error(browser: Browser, path: Path) -> None:
    sent = [event["params"] for event in browser.events if event["method"] == "Network.requestWillBeSent"]
    urls = [one["request"]["url"] for one in sent]
    assert [url for url in urls if not url.startswith("data:")] == [path.as_uri()]
    bad = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Page.javascriptDialogOpening")
    assert not [event for event in browser.events if event["method"] in bad]
    assert browser.run("[...document.images].every((image) => image.hidden || image.naturalWidth > 0)")


MOVE = """((selector, value) => {
  const slider = document.querySelector(selector);
  slider.value = value;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
})"""
SHOWN = "[...document.querySelectorAll('.frames:not([hidden]) img:not([hidden])')].map((image) => image.alt)"


def test_the_slider_and_the_button_change_the_epoch(browser: Browser) -> None:
    (last,) = browser.run(SHOWN)
    assert "transformer.0" in last and "epoch 2" in last
    browser.run(f"{MOVE}('.frames input', 0)")
    (first,) = browser.run(SHOWN)
    assert "epoch 1" in first and browser.run("document.querySelector('output').textContent").startswith("epoch 1, ")
    browser.run("document.querySelector('.frames button').click()")
    assert browser.run("document.querySelector('.frames button').textContent") == "Pause"
    browser.run("new Promise((resolve) => setTimeout(resolve, 600))")
    assert browser.run(SHOWN) == [last]  # and it has stopped there
    assert browser.run("document.querySelector('.frames button').textContent") == "Play"


def test_another_transformer_can_be_chosen(browser: Browser) -> None:
    choose = "((name) => { const choice = document.querySelector('select'); choice.value = name;"
    choose += " choice.dispatchEvent(new Event('change')); })"
    browser.run(f"{choose}('transformer.1')")
    (shown,) = browser.run(SHOWN)
    assert "transformer.1" in shown
    browser.run(f"{choose}('transformer.0')")


def test_the_slider_wipes_from_the_original_to_what_is_read(browser: Browser) -> None:
    clip = "((part) => getComputedStyle(document.querySelector('.over ' + part)).clipPath)"
    seen = []
    for value in (0, 30, 100):
        browser.run(f"{MOVE}('.wipes input', {value})")
        seen.append((browser.run(f"{clip}('.before')"), browser.run(f"{clip}('.after')")))
    assert [before for before, _ in seen] == [f"inset(-15% -15% -15% {value}%)" for value in (0, 30, 100)]
    assert len({after for _, after in seen}) == 3


def test_on_a_phone_the_page_does_not_scroll_sideways(browser: Browser) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
    browser.run("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert browser.run("document.documentElement.scrollWidth") == 360
    assert browser.run("innerWidth") == 360  # it has not been zoomed out either
