"""The parts of the network in a few lines."""

from typing import Any

from pytorch_lightning.callbacks import RichModelSummary
from rich import get_console
from rich.table import Table

COLUMNS = {"Name": "part", "Type": "class", "Params": "parameters", "Out sizes": "output of 2 images"}


class NetworkSummary(RichModelSummary):
    """Prints the parts of the network, their parameters and the shapes of their outputs when training starts.

    max_depth: how deep parts within parts are listed.
    Lightning's own table has the metrics too, and up to five lines for each part.
    """

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]], total_parameters: int, *others: Any, **options: Any
    ) -> None:
        shown = {name: values for name, values in summary_data if name in COLUMNS}
        table = Table(caption=f"{total_parameters:,} parameters", caption_justify="left")
        for name in shown:
            table.add_column(COLUMNS[name], justify="right" if name == "Params" else "left", no_wrap=True)
        for row in zip(*shown.values(), strict=True):
            if "_metrics" not in row[0]:
                table.add_row(*(str(value).strip().replace("[", r"\[") for value in row))
        get_console().print(table)
