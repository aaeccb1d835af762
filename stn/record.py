"""python -m stn.record RUN…: keeps the results of finished runs in results/, and makes the pages that are generated.

python -m stn.record outputs/2026-11-24/12-00-00-000000
python -m stn.record    # makes the pages anew
"""

import argparse
from pathlib import Path

from stn import cli


def main() -> None:
    """Runs the command line, in a checkout."""
    parser = argparse.ArgumentParser(
        "stn.record",
        description="Keeps results of runs in results/, and makes the pages that are generated.",
    )
    parser.add_argument("runs", nargs="*", type=Path, help="folders of finished runs")
    arguments = parser.parse_args()
    with cli.exit_codes("stn.record"):
        # Here, since --help must not wait for them.
        from stn.benchmark.page import make_speed_page
        from stn.reference import make_reference
        from stn.results import record
        from stn.results_page import make_result_pages

        for folder in arguments.runs:
            print(record(folder))
        make_result_pages()
        make_speed_page()
        make_reference()


if __name__ == "__main__":
    main()
