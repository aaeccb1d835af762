"""What every command shares: exit codes, one sentence for what is wrong, the traceback kept in a file."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stn.config import explain

BUG = 1
BAD_INPUT = 2
INTERRUPTED = 130  # the shell's exit code for a program ended by Ctrl-C


@contextmanager
def exit_codes(program: str) -> Iterator[None]:
    """Ends the process with the exit code for what a command raises: bad input has 2, Ctrl-C 130, a bug 1.

    Bad input is told in one sentence, a bug by its traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except JobFailedError as failed:
        sys.exit(failed.code)
    except Exception as error:
        sys.exit(tell(program, error))


def tell(program: str, error: BaseException, folder: str | Path | None = None) -> int:
    """Tells what went wrong, keeps it with its traceback in `folder`/error.txt, and returns the exit code."""
    sentence = explain(error)
    if sentence is None and (cause := find_os_error(error)) and not folder:  # Hydra, making the run's folder
        sentence = f"the output folder cannot be written: {cause}"
    trace = "".join(traceback.format_exception(error))
    said = f"{program}: {sentence}\n" if sentence else trace
    sys.stderr.write(said)
    if folder:
        with suppress(OSError):
            Path(folder, "error.txt").write_text(f"{said}\n{trace}" if sentence else trace)
    return BAD_INPUT if sentence else BUG


def find_os_error(error: BaseException | None) -> OSError | None:
    """The OSError that led to an error, if one did."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def print_table(figures: Mapping[str, Any]) -> None:
    """Prints names and figures as a table; an accuracy in %."""
    from rich.console import Console  # here, since --help must not wait for it
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in figures.items():
        if isinstance(value, str):
            shown = value
        elif name.endswith("accuracy"):
            shown = f"{value:.2%}"
        else:
            shown = f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
        table.add_row(name.replace("_", " "), shown)
    Console().print(table)


class JobFailedError(Exception):
    """A job of a sweep ended with this exit code; what was wrong is told already."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code
