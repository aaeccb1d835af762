"""Shared by all commands: exit codes, error messages and tables."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stn.config import explain
from stn.errors import DivergedError

FAILED = 1  # a bug, or a training that diverged
BAD_INPUT = 2
INTERRUPTED = 130  # the shell's exit code for a program ended by Ctrl-C
TERMINATED = 143  # and by SIGTERM


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM."""


class JobFailedError(Exception):
    """A job of a sweep ended with an exit code; its error was printed already."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@contextmanager
def exit_codes(program: str) -> Iterator[None]:
    """Prints errors, and exits with 2 for bad input, 130 for Ctrl-C, 143 for SIGTERM and 1 for all else."""
    try:
        yield
    except Terminated:
        print(f"{program}: terminated", file=sys.stderr)
        sys.exit(TERMINATED)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except JobFailedError as failed:
        sys.exit(failed.code)
    except Exception as error:
        sys.exit(report_error(program, error))


def report_error(program: str, error: BaseException, folder: str | Path | None = None) -> int:
    """Prints an error, one sentence or, for a bug, a traceback, and returns the exit code.

    folder: error.txt in it gets the error with its traceback.
    """
    sentence = str(error) if isinstance(error, DivergedError) else explain(error)
    trace = "".join(traceback.format_exception(error))
    text = f"{program}: {sentence}\n" if sentence else trace
    sys.stderr.write(text)
    if folder:
        with suppress(OSError):
            Path(folder, "error.txt").write_text(f"{text}\n{trace}" if sentence else trace)
    return BAD_INPUT if sentence and not isinstance(error, DivergedError) else FAILED


def print_table(values: Mapping[str, Any]) -> None:
    """Prints names and values as a table. Accuracies are in %."""
    from rich.console import Console  # here, since --help must not wait for it
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in values.items():
        if isinstance(value, str):
            shown = value
        elif name.endswith("accuracy"):
            shown = f"{value:.2%}"
        else:
            shown = f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
        table.add_row(name.replace("_", " "), shown)
    Console().print(table)
