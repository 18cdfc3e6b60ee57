"""Measure, print a table for each subject and the verdicts of all, and keep the figures as JSON."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import signal
import sys
import time
from pathlib import Path

import msgspec
from rich.console import Console

import fastchat_serve
from tests.bench.report import Plan, Report, Subject
from tests.bench.tables import show_report, show_summary

SUBJECTS = {
    "gateway": "a request and a token on the whole path, beside other servers (needs the harness)",
    "split": "an API process in front of workers in other processes, beside gateways (needs the harness)",
    "streams": "the same beside a bare ASGI app",
    "disconnects": "how soon a slot is free after its client left",
    "startup": "time, CPU and memory to the first 200",
    "fleet": "what thousands of nodes cost a controller and an API process",
    "dispatch": "the choice of a worker, by policy and number of workers",
    "overload": "goodput and refusals far beyond capacity",
    "hf": "tokens per second of the HF engine",
}
HARNESS = Path("../shared/bench")
FIGURES = Path(".nox/bench.json")
"""Where git does not look."""
FILE_WIDTH = 120
"""Characters of a line that goes to no terminal."""


def main() -> int:
    """The exit status: 1 if a subject could not be measured to its end. A bar that is missed is no failure."""
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that what was started is stopped, too
    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    subjects: dict[str, Report] = {}
    failed = False
    for subject in args.what or SUBJECTS:
        try:
            subjects[subject] = _measure(subject, args, console)
        except Exception:  # one subject's failure must not cost the hour that the others take
            failed = True
            console.print_exception()
            subjects[subject] = Report(tables={}, notes=["Failed: see above."])
        show_report(console, subject, subjects[subject])
        _write(args.json, subjects)
    show_summary(console, {subject: report.verdicts for subject, report in subjects.items()})
    console.print(f"Figures: {args.json}")
    return int(failed)


def _arguments() -> argparse.Namespace:
    about = "\n".join(f"  {subject:12} {what}" for subject, what in SUBJECTS.items())
    parser = argparse.ArgumentParser(
        prog="nox -s bench --",
        description=f"{__doc__}\n\nsubjects:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="*", metavar="SUBJECT", help="what to measure (default: everything)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="measure all this often (default: 3)")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it works")
    parser.add_argument("--json", type=Path, default=FIGURES, metavar="FILE", help=f"the figures (default: {FIGURES})")
    parser.add_argument("--harness", type=Path, default=HARNESS, metavar="FOLDER", help=f"default: {HARNESS}")
    parser.add_argument(
        "--vllm", action="store_true", help="measure vLLM beside the HF engine; nox builds its environment"
    )
    args = parser.parse_args()
    if unknown := set(args.what) - SUBJECTS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if args.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return args


def _measure(subject: str, args: argparse.Namespace, console: Console) -> Report:
    began = time.monotonic()
    with console.status(subject) as status:

        def progress(what: str) -> None:
            line = f"{subject}, {time.monotonic() - began:.0f} s: {what}"
            status.update(line)
            if not console.is_terminal:
                console.print(line)

        plan = Plan(rounds=1 if args.quick else args.rounds, quick=args.quick, harness=args.harness, progress=progress)
        module: Subject = importlib.import_module(f"tests.bench.{subject}")
        return module.measure(plan)


def _write(path: Path, subjects: dict[str, Report]) -> None:
    """All figures so far."""
    machine = {"system": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()}
    versions = {"python": platform.python_version(), "fastchat-serve": fastchat_serve.__version__}
    path.parent.mkdir(parents=True, exist_ok=True)
    figures = {"machine": machine, "versions": versions, "subjects": subjects}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1))  # nan and infinity become null


if __name__ == "__main__":
    sys.exit(main())
