"""The options of a command, key=value, checked as the keys of a config are."""

import argparse
import os
import shutil
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from stn.check import fits, spell
from stn.config import hydra_word
from stn.errors import InputError, user_errors

Options = TypeVar("Options")


def parser(program: str, about: str | None, options: type, words: str | None = None) -> argparse.ArgumentParser:
    """The parser of a command line RUN key=value …, whose --help lists the options and ends with examples.

    about: the docstring of the command, `usage: what it does.`, and below an empty line the examples.
    options: a dataclass; the metadata of each field has its help.
    words: the help of what the command takes if it does not begin with one run; options are then among `words`.
    """
    head, _, examples = (about or "").strip().partition("\n\n")
    does = head.partition(": ")[2]
    lines = ["options, key=value:"]
    width = max(14, *(len(field.name) + 3 for field in fields(options)))
    for field in fields(options):
        default = "" if field.default in (MISSING, None) else f" (default: {shown(field.default)})"
        lines.append(f"  {field.name + '=…':<{width}} {field.metadata['help']}{default}")
    found = argparse.ArgumentParser(
        program,
        description=does[:1].upper() + does[1:],
        epilog="\n".join([*lines, "", "examples:", *(f"  {line}" for line in examples.splitlines())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if words:
        found.add_argument("words", nargs="*", default=[], metavar="word", help=words)
        return found
    found.add_argument("run", help="a run's folder, a checkpoint, or latest")
    found.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="an option, or a key of the run's config"
    )
    return found


def shown(value: object) -> str:
    """A value as it is typed on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse(options: type[Options], texts: Sequence[str]) -> tuple[Options, list[str]]:
    """The options among some texts key=value, and the other texts, which are keys of the run's config.

    Raises InputError for a value of a wrong type, an option that is given twice, or one that is needed and missing.
    """
    hints = get_type_hints(options)
    values: dict[str, Any] = {}
    others = []
    for text in texts:
        key, equals, _ = text.partition("=")
        if not equals or key not in hints:
            others.append(text)
            continue
        if key in values:
            raise InputError(f"{key} is given twice: leave out one of the two")
        values[key] = value_of(hydra_word(text), hints[key] in (str, str | None))
        if not fits(values[key], hints[key]):
            raise InputError(f"{text} must be {spell(hints[key])}")
    for field in fields(options):  # type: ignore[arg-type]  # every class of options is a dataclass
        if field.default is MISSING and field.name not in values:
            raise InputError(f"{field.name}=… is missing: {field.metadata['help']}")
    return options(**values), others


def value_of(text: str, is_text: bool) -> Any:
    """The value in key=value. Raises InputError for one that is not understood.

    is_text: it may be anything, such as photo (1).jpg, and only quotes and null mean what they mean elsewhere.
    """
    key, _, value = text.partition("=")
    try:
        (parsed,) = OverridesParser.create().parse_overrides([text])
    except OverrideParseException as error:
        if is_text:
            return value
        raise InputError(f"{text!r} is not understood; write {key}=value, or quote the value") from error
    found = parsed.value()
    return value if is_text and not isinstance(found, str | None) else found


@user_errors("output")  # of a folder that nobody may look into
def check_output(folder: Path, overwrite: bool, mark: str) -> None:
    """Raises InputError for a folder that `make_output` would refuse. It changes nothing."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output={folder} is a file: give a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise InputError(f"{folder} holds files already: set overwrite=true, or output=… to another folder")
        if not (folder / mark).is_file() or (folder / "config.yaml").exists():
            raise InputError(f"{folder} is not what this command wrote, with {mark}: give another folder by output=…")
    if not can_be_made(folder):
        raise InputError(f"{folder} cannot be written: give another folder by output=…")


@user_errors("output")
def check_file(path: Path, suffix: str, overwrite: bool) -> None:
    """Raises InputError for a file that a command may not write: of another suffix, or one that exists already.

    overwrite: whether one that exists is replaced. It changes nothing.
    """
    if path.suffix != suffix:
        raise InputError(f"output={path} must end in {suffix}")
    if path.is_dir():
        raise InputError(f"output={path} is a folder: give a file")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already: set overwrite=true, or output=… to another file")
    if not can_be_made(path.parent):
        raise InputError(f"{path} cannot be written: give another file by output=…")


def can_be_made(folder: Path) -> bool:
    """Whether a folder can be written to, once it is made."""
    nearest_folder = next(path for path in (folder, *folder.absolute().parents) if os.access(path, os.F_OK))
    return nearest_folder.is_dir() and os.access(nearest_folder, os.W_OK)


def make_output(folder: Path, overwrite: bool, mark: str) -> Path:
    """Makes the folder that a command writes to.

    With `overwrite` it deletes all that is in it. mark: a file that the command always writes; it must be there then.
    Raises InputError for a folder that is not empty, unless it may be deleted.
    """
    check_output(folder, overwrite, mark)
    try:
        if folder.is_dir() and any(folder.iterdir()):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}") from error
    return folder
