"""The network's layers, shapes and parameters, at the start of a run."""

from typing import Any

from pytorch_lightning.callbacks import ModelSummary
from rich.console import Console
from rich.table import Table


class NetworkSummary(ModelSummary):
    """Prints the network down to single layers, with the shape of what each gives: N is the batch."""

    def __init__(self) -> None:
        super().__init__(max_depth=-1)

    @staticmethod
    def summarize(summary_data: list[tuple[str, list[str]]], total_parameters: int, *totals: Any, **more: Any) -> None:
        columns = dict(summary_data)
        table = Table("layer", "type", "output", "parameters")
        table.columns[-1].justify = "right"
        shapes = columns.get("Out sizes", [""] * len(columns["Name"]))
        for name, kind, shape, parameters in zip(
            columns["Name"], columns["Type"], shapes, columns["Params"], strict=True
        ):
            if name.startswith("net."):  # the rest are metrics
                _, *parents, layer = name.split(".")
                table.add_row("  " * len(parents) + layer, kind, shape.replace("[2", "[N", 1), parameters)
        table.add_section()
        table.add_row("", "", "", f"{total_parameters:,}")
        Console().print(table)
