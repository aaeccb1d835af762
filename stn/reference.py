"""Makes docs/configuration.md: all groups, choices and keys, from the comments in conf/ and the code's docstrings."""

import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_object
from omegaconf import OmegaConf

from stn.check import GROUPS, TOP_LEVEL_KEYS
from stn.config import compose, config_folder
from stn.results import table

PAGE = Path("docs/configuration.md")
NESTED = ("data/distortion", "data/test_distortion", "model/localization", "model/warp")
HEAD = """# Configuration

Made by `python -m stn.record` from the comments in `conf/` and the docstrings of the code.

A config has a choice of each group, `group=choice`, and keys, `key=value`, on the command line or from Python: \
`stn.config.compose(["model=lenet", "data.batch_size=64"])`. `null` leaves out what a key names, such as \
`callbacks.warps=null`. A class may take more arguments than its config lists; a `+` sets one, such as \
`+model.transformer.append_theta=true`. `python -m stn.train --cfg job` shows the whole config.

With these lines in `~/.bashrc`, the tab key completes the groups, choices and keys of `stn train`:

```bash
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
_stn() {
  local choices=$(COMP_LINE="${COMP_LINE/stn train/stn-train}" stn train -sc query=bash)
  COMPREPLY=($(compgen -W "$choices" -- "${COMP_LINE##* }"))
}
complete -o nospace -o default -F _stn stn
```

What `-sc install=bash` prints, Hydra's own way, completes neither `stn train` nor `python -m stn.train`: it is for a \
script or a program without verbs.
"""


def make_reference() -> None:
    """Writes docs/configuration.md."""
    PAGE.write_text(reference(), encoding="utf-8")


def reference() -> str:
    """The text of docs/configuration.md."""
    defaults = {
        group: choice for one in read("config.yaml")["defaults"] if one != "_self_" for group, choice in one.items()
    }
    model = Path(config_folder(), "model", f"{defaults['model']}.yaml").read_text(encoding="utf-8")
    defaults |= dict(re.findall(r"override /(\w+)@_global_\S+ (\w+)", model))
    parts = [HEAD, "## The run\n", run_keys()]
    for group in [name for one in GROUPS for name in (one, *NESTED) if name == one or name.startswith(f"{one}/")]:
        chosen = f", by default `{defaults[group]}`" if group in defaults else ""
        parts += [f"\n## `{group}`{chosen}\n", choices(group), "", keys(group)]
    parts += ["\n## `experiment`\n", "Settings of all groups. Others can be added: `experiment=demo seed=1`.\n"]
    parts += [presets("experiment"), "\n## `arm`\n", "Networks to compare, of `experiment=does_it_help`.\n"]
    return re.sub(r"<(\w+)>", r"\<\1>", "\n".join([*parts, presets("arm")])) + "\n"  # else they would be HTML


def run_keys() -> str:
    """The table of the keys that are in no group, and of those of Hydra that have a meaning for a run."""
    values = {key: value for key, value, _ in leaves(read("config.yaml"))}
    said = comments("config.yaml")
    names = (*TOP_LEVEL_KEYS, "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
    return table([("key", "default", "meaning"), *((f"`{key}`", code(values[key]), said[key]) for key in names)])


def choices(group: str) -> str:
    """The table of the choices of a group."""
    rows = [("choice", "what it is", "class")]
    for choice in names(group):
        target = chosen(group, choice).get("_target_", "")
        rows.append((f"`{choice}`", description(f"{group}/{choice}.yaml"), f"`{target}`" if target else "none"))
    without = all(row[2] == "none" for row in rows[1:])
    return table([row[:2] for row in rows] if without else rows)


def presets(group: str) -> str:
    """The table of a group whose choices set keys of all groups, with what each sets."""
    rows = [("choice", "what it is", "what it sets")]
    for name in names(group):
        content = read(f"{group}/{name}.yaml")
        sets = []
        for one in content.pop("defaults", ()):
            if one == "_self_":
                continue
            if isinstance(one, str):
                sets.append(f"as `{one}`, and")
            else:
                sets += [f"`{group.removeprefix('override /')}={choice}`" for group, choice in one.items()]
        sets += [f"`{key}={as_json(value)}`" for key, value, _ in leaves(content)]
        rows.append((f"`{name}`", description(f"{group}/{name}.yaml"), " ".join(sets)))
    return table(rows)


def keys(group: str) -> str:
    """The table of the keys of a group, with the default under each choice."""
    files = [f"{group}/{choice}.yaml" for choice in names(group)]
    path = group.replace("/", ".")
    said: dict[str, str] = {}
    for file in (*files, *(["network.yaml"] if group == "model" else [])):
        said = {f"{path}.{key}": text for key, text in comments(file).items()} | said
    # By key and meaning, each value with the choices that have it.
    found: dict[str, dict[str, dict[str, list[str]]]] = {}
    for choice in names(group):
        for key, value, owner in leaves(chosen(group, choice), path):
            if any(f"{key}.".startswith(f"{nested.replace('/', '.')}.") for nested in NESTED if nested != group):
                continue
            meaning = (summary(value) if value == owner else documented(owner, key)) or said.get(key, "")
            values = found.setdefault(key, {}).setdefault(meaning, {})
            values.setdefault(code(value), []).append(f"`{choice}`")
    rows = [("key", "default", "meaning")]
    for key, meanings in found.items():
        if len(meanings) > 1:  # a null has the meaning of what it leaves out
            for value, where in meanings.pop("", {}).items():
                next(iter(meanings.values())).setdefault(value, []).extend(where)
        for meaning, values in meanings.items():
            same = len(next(iter(values.values()))) == len(files)
            defaults = [value if same else f"{value} ({', '.join(where)})" for value, where in values.items()]
            rows.append((f"`{key}`", ", ".join(defaults), meaning[:1].upper() + meaning[1:]))
    return table(rows)


def names(group: str) -> list[str]:
    """The choices of a group."""
    return sorted(path.stem for path in Path(config_folder(), group).glob("*.yaml"))


@cache
def chosen(group: str, choice: str) -> dict[str, Any]:
    """The part of a config that a choice makes, without the values of ${…}."""
    config = compose([f"{group}={choice}"])
    found = OmegaConf.select(config, group.replace("/", "."))
    return dict(OmegaConf.to_container(found)) if found is not None else {}  # type: ignore[arg-type]


def leaves(node: Mapping[str, Any], path: str = "", owner: str = "") -> Iterator[tuple[str, Any, str]]:
    """The keys within a node, each with its value and the `_target_` that takes it. An object's value is its class."""
    owner = node.get("_target_", owner)
    for key, value in node.items():
        inner = f"{path}.{key}" if path else key
        if key.startswith("_"):
            continue
        if isinstance(value, dict):
            if "_target_" in value:
                yield inner, value["_target_"], value["_target_"]
            yield from leaves(value, inner, owner)
        else:
            yield inner, value, owner


def summary(target: str) -> str:
    """The first line of the docstring of a class or function of this project. Empty for other packages."""
    return (inspect.getdoc(get_object(target)) or "").split("\n")[0] if target.startswith("stn.") else ""


def documented(target: str, key: str) -> str:
    """What the docstring of a class or function of this project, or of its bases, says about an argument.

    key: ends with the argument's name. Empty for other packages.
    """
    if not target.startswith("stn."):
        return ""
    found = get_object(target)
    name = key.rpartition(".")[2]
    for part in getattr(found, "__mro__", [found]):
        meaning = arguments(part).get(name) if part.__module__.startswith("stn.") else None
        if meaning and (other := re.fullmatch(r"see `(\w+)`\.", meaning)):
            meaning = arguments(getattr(sys.modules[part.__module__], other[1])).get(name)
        if meaning:
            return re.sub(r"\bNone\b", "null", meaning)
    return ""


def arguments(found: Any) -> dict[str, str]:
    """The meaning of each argument that a docstring has a line "name: meaning" or "name, name: meaning" for."""
    said: dict[str, str] = {}
    for names, meaning in re.findall(r"^(\w+(?:, \w+)*): (.+(?:\n +.+)*)", inspect.getdoc(found) or "", re.MULTILINE):
        said |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return said


def read(file: str) -> dict[str, Any]:
    """The content of a file in conf/."""
    return dict(yaml.safe_load(Path(config_folder(), file).read_text(encoding="utf-8")))


def description(file: str) -> str:
    """What a file in conf/ says of itself: its first comment that is neither for Hydra nor a command."""
    lines = Path(config_folder(), file).read_text(encoding="utf-8").splitlines()
    found = (line for line in lines if line.startswith("# ") and not re.match("# (@package|python -m)", line))
    return next(found, "# ").removeprefix("# ")


def comments(file: str) -> dict[str, str]:
    """The comment above each key of a file in conf/. The one at the file's start is about the file."""
    said: dict[str, str] = {}
    above: list[str] = []
    path: list[str] = []
    at_start = True
    for line in Path(config_folder(), file).read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("#"):
            above.append(text.removeprefix("#").strip())
            continue
        if key := re.match(r"( *)(\w+):", line):
            path = [*path[: len(key[1]) // 2], key[2]]
            if above and not at_start:
                said[".".join(path)] = " ".join(above)
        above, at_start = [], False
    return said


def as_json(value: object) -> str:
    """A text as it is, and another value, or an empty text, as JSON without spaces."""
    return value if isinstance(value, str) and value else json.dumps(value, separators=(",", ":"))


def code(value: object) -> str:
    """A value as code."""
    return f"`{as_json(value)}`"
