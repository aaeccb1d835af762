"""Errors that the user can correct; each message is one sentence."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any


class InputError(ValueError):
    """Something that the user gave cannot be used. The message says in one sentence what is wrong and what is right."""


class DivergedError(Exception):
    """Training has diverged; the message says in one sentence when, and what to try."""


class LostProcessError(Exception):
    """A process of a training with several has ended; the message says in one sentence what to do."""


class InexactExportError(Exception):
    """An exported file computes something else than the network; the message says in one sentence by how much."""


@contextmanager
def user_errors(part: str, *more: type[Exception]) -> Iterator[None]:
    """Turns errors about values, files and devices into an InputError that names `part`, a key of the config.

    more: further classes of errors that are the user's here.
    If Hydra failed to build an object inside that part, the message names the object's key.
    """
    from hydra.errors import InstantiationException  # here, since --help must not wait for Lightning
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    users: tuple[type[Exception], ...] = (ValueError, OSError, ImportError, MisconfigurationException, *more)
    try:
        yield
    except InputError:
        raise
    except InstantiationException as error:
        cause = error.__cause__
        if "allocate memory" in str(cause):  # torch's error begins with a line of its source
            cause = ValueError("there is not enough memory for so large a value")
        if not isinstance(cause, users):
            raise
        inner = re.search(r"full_key: (\S+)", str(error))
        key = inner[1] if inner else part
        raise InputError(f"{key if key.startswith(part) else f'{part}.{key}'}: {in_words(cause)}") from error
    except users as error:
        said = in_words(error)
        raise InputError(said if said.startswith(f"{part}: ") else f"{part}: {said}") from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        raise InputError(f"{part}: there is not enough memory for so much") from error


def in_words(error: BaseException) -> str:
    """What an error says, of a file without the system's number."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def require(extra: str, *packages: str) -> None:
    """Raises InputError if a package of one of this project's extras is not installed."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise InputError(f'{missing[0]} is not installed: pip install ".[{extra}]"')


def nearest_key(word: str, config: Mapping[str, Any], choices: Iterable[object]) -> str:
    """As `nearest`, for a key at the top of a config, unless one of its groups has that key."""
    inner = [f"{group}.{word}" for group, node in config.items() if isinstance(node, Mapping) and word in node]
    return f"did you mean {inner[0]!r}?" if inner else nearest(word, choices)


def nearest(word: str, choices: Iterable[object]) -> str:
    """'did you mean …?', or a list of the choices if none is similar."""
    names = [str(choice) for choice in choices]
    if not names:
        return "it takes none"
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(sorted(set(names)))}"
