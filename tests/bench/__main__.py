"""``python -m tests.bench [WHAT …] [--json FILE]``: measure, print a table, and keep the figures as JSON."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

SUBJECTS = ("disconnects", "streams", "hf")


def main() -> None:
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=__doc__)
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"any of {', '.join(SUBJECTS)} (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    args = parser.parse_args()
    unknown = set(args.what) - set(SUBJECTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    console = Console()
    figures: dict[str, list[dict[str, object]]] = {}
    for subject in args.what or SUBJECTS:
        with console.status(f"measuring {subject}"):
            rows = importlib.import_module(f"tests.bench.{subject}").measure()
        figures[subject] = rows
        table = Table(title=subject)
        for column in rows[0]:
            table.add_column(column)
        for row in rows:
            table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
        console.print(table)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
