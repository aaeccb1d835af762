"""What was trained on what, and how it can be repeated."""

import re
from collections.abc import Mapping
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stn.errors import user_errors
from stn.hyperparameters import class_name
from stn.reporting.parts import Section, paragraph, table
from stn.run import Run
from stn.untrusted import read_json, read_text

PLACEMENTS = {
    "input": "on the image",
    "features": "on the first feature map",
    "deep": "on the image and on two feature maps",
    "parallel": "two on the image, side by side",
    "shared": "on the image, with θ from the classifier's first stage",
}
NETWORK = ("model.classifier", "model")  # the keys that may name it


def kind(config: DictConfig, *keys: str) -> str:
    """The class that the first of some keys of a config names; empty if it has none of them."""
    for key in keys:
        if name := OmegaConf.select(config, f"{key}._target_"):
            return class_name(name)
    return ""


def in_words(name: str) -> str:
    """The name of a class as words: ThinPlateSpline becomes thin plate spline."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def title(config: DictConfig) -> str:
    """What was trained on what."""
    return f"{kind(config, *NETWORK)} with {transformer(config)} on {in_words(kind(config, 'data'))}"


def transformer(config: DictConfig) -> str:
    """The transformer in words."""
    warp = in_words(kind(config, "model.warp"))
    if OmegaConf.select(config, "model.placement") == "none" or not warp:
        return "no transformer"
    return f"{'an' if warp[0] in 'aeio' else 'a'} {warp} transformer"


def data(config: DictConfig) -> str:
    """The images in words."""
    root = OmegaConf.select(config, "data.root")
    return in_words(kind(config, "data")) + (f" in {root}" if root else "")


def facts(run: Run, config: DictConfig, numbers: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, str]:
    """The most important settings and figures of a run.

    config: of its evaluation, whose data may be others. numbers: of that. trained: the environment of its training.
    """
    measured = {key: value for key, value in run.metrics.items() if isinstance(value, int | float)}
    parameters = sum(parameter.numel() for parameter in run.classifier.net.parameters())
    found = {"network": f"{kind(config, *NETWORK)}, {parameters:,} parameters"}
    found["transformer"] = transformer(config)
    if numbers["transformers"]:
        looks = OmegaConf.select(config, "model.transformer.num_looks") or 1
        place = PLACEMENTS.get(str(OmegaConf.select(config, "model.placement")), "")
        found["transformer"] = ", ".join(filter(None, [transformer(config), place, f"{looks} looks" * (looks != 1)]))
    tested, before = data(config), data(run.settings())
    found["data"] = tested if tested == before else f"{tested}; trained on {before}"
    found["images"] = f"{run.image_size} × {run.image_size} pixels, {run.channels} channels, {len(run.classes)} classes"
    if measured.keys() >= {"epochs", "seconds", "images_per_second"} and measured["epochs"] > 0:
        images = measured["images_per_second"] * measured["seconds"] / measured["epochs"]
        found["training"] = f"{measured['epochs']:,.0f} epochs of {images:,.0f} images"
        found["time"] = f"{timedelta(seconds=round(measured['seconds']))} (hours:minutes:seconds)"
    found |= {"date": str(trained["date"])[:10]} if "date" in trained else {}
    found["weights"] = f"of epoch {run.epoch}, {run.checkpoint.name}"
    return found


def environment(folder: Path) -> dict[str, Any]:
    """The content of environment.json, empty if there is none. Raises InputError for a file that cannot be read."""
    path = folder / "environment.json"
    if not path.exists():
        return {}
    with user_errors(str(path), TypeError):
        found = dict(read_json(path))
        resumed = [{"date": "", "command": ""} | dict(one) for one in found.get("resumed", [])]
        nested = {key: dict(found.get(key, {})) for key in ("machine", "versions")}
        return found | nested | {"resumed": resumed}


def read_config_text(folder: Path) -> str:
    """The text of config.yaml. Raises InputError for a file that cannot be read."""
    path = folder / "config.yaml"
    with user_errors(str(path)):
        return read_text(path)


def repetition(trained: Mapping[str, Any], evaluated: Mapping[str, Any], config: str) -> Section:
    """The commands that repeat the run, its config, and the environments of training and of this report."""
    parts = []
    if "command" in trained:
        parts += [paragraph("The command that trained it:"), command(str(trained["command"]))]
    for resumed in trained.get("resumed", []):
        parts += [paragraph(f"It was resumed on {str(resumed['date'])[:10]} by:"), command(str(resumed["command"]))]
    parts += [
        paragraph("To repeat it from its config, save that as DIR/config.yaml:"),
        command('python -m stn.train --config-path "$PWD/DIR"'),
        f"<details><summary>config.yaml</summary>{command(config)}</details>",
    ]
    columns = [as_texts(trained), as_texts(evaluated)]
    rows = [[name, *(column.get(name, "–") for column in columns)] for name in columns[0] | columns[1]]
    return Section("repeat", "Repeat it", "".join(parts) + table(["", "training", "this report"], rows, "Environment"))


def as_texts(about: Mapping[str, Any]) -> dict[str, str]:
    """What `provenance` gives, without the command, as texts by their names."""
    found = {key: about[key] for key in ("date", "commit") if about.get(key)}
    found |= {**about.get("machine", {}), **about.get("versions", {})}
    return {
        str(name): ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in found.items()
    }


def command(text: str) -> str:
    """A text that a button copies."""
    button = '<button type="button" class="copy">Copy</button>'
    return f'<div class="copied">{button}<pre tabindex="0">{escape(text)}</pre></div>'
