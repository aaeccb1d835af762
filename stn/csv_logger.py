"""Writes metrics.csv so that no row is lost when the program is ended at any moment."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from stn.config import write


class DurableCSVLogger(CSVLogger):
    """Lightning's CSV logger, but its file is whole at every moment, and the file of a resumed run is continued.

    Lightning's own deletes the file that it finds, and rewrites it in place whenever a column is new.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the file."""
        if self._experiment is None:
            self._experiment = Writer(self.log_dir)
        return self._experiment


class Writer(ExperimentWriter):
    """Appends rows to the file, or replaces it at once if it needs more columns."""

    def _check_log_dir_exists(self) -> None:
        pass  # the file of an earlier run has been deleted, or is continued

    def save(self) -> None:
        """Writes the rows since the last time."""
        rows, self.metrics = self.metrics, []  # first: an interruption must not write them twice
        if not set().union(*rows) <= set(self.metrics_keys):
            self.replace([*read_rows(Path(self.metrics_file_path)), *rows])
        elif rows:
            with Path(self.metrics_file_path).open("ab", buffering=0) as file:
                file.write(as_csv(rows, self.metrics_keys).encode())

    def replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Makes these all rows of the file."""
        keys = sorted(set().union(*rows))
        header = {key: key for key in keys}
        write(Path(self.metrics_file_path), as_csv([header, *rows], keys))
        self.metrics_keys = keys


def as_csv(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str:
    """Rows as the lines of a CSV file with a column for each key."""
    text = io.StringIO(newline="")
    csv.DictWriter(text, keys).writerows(rows)
    return text.getvalue()


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, without empty values; none if there is no such file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
