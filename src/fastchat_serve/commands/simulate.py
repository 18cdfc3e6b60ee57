"""``fastchat-serve simulate``: what a fleet that does not exist yet would make of a trace, policy by policy."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fastchat_serve.commands.tables import print_table
from fastchat_serve.controller.naming import policy_named
from fastchat_serve.controller.policies import POLICIES
from fastchat_serve.errors import ConfigError
from fastchat_serve.plugins import Plugins
from fastchat_serve.policy import Policy
from fastchat_serve.simulation.outcome import Outcome, quantile
from fastchat_serve.simulation.picture import blocks, svg
from fastchat_serve.simulation.plan import Plan, load_plan
from fastchat_serve.simulation.run import Simulation
from fastchat_serve.simulation.synthetic import make_up
from fastchat_serve.simulation.trace import Arrival, read_trace

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Run the plan once for each policy, and print a column for each."""
    plan = load_plan(args.config, args.overrides)
    policies = _policies(plan)
    total = plan.synthetic.requests if args.trace is None else _lines(args.trace)
    if args.picture is not None:
        _try(args.picture)
    outcomes = []
    with _few_collections(), _progress() as progress:
        for name, policy in policies.items():
            task = progress.add_task(name, total=total)
            arrivals = _arrivals(plan, args.trace)
            outcomes.append(Simulation(plan, name, policy, arrivals, _advance(progress, task)).run())
    print_table(_table(outcomes))
    if args.picture is not None:
        _write(args.picture, svg(outcomes))
    return 0


def _policies(plan: Plan) -> dict[str, Policy]:
    """Those that are compared. Raises `ConfigError`, `PluginError`."""
    plugins = Plugins()
    plugins.load(plan.plugins)
    found = {}
    for index, name in enumerate(plan.policies):
        try:
            found[name] = policy_named(name, plugins)
        except LookupError as error:
            raise plan.error(("policies", index), str(error.args[0])) from None
    return found or dict(POLICIES)


def _arrivals(plan: Plan, trace: Path | None) -> Iterator[Arrival]:
    return make_up(plan.synthetic, plan.seed) if trace is None else read_trace(trace, plan.models[0])


def _lines(trace: Path) -> int | None:
    """About how many requests it has; whoever reads it will say what is wrong with it."""
    try:
        with trace.open("rb") as file:
            return sum(1 for _ in file)
    except OSError:
        return None


def _progress() -> Progress:
    """On standard error, so that the table can be piped; it is gone when it is over."""
    columns = (TextColumn("{task.description:>16}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _advance(progress: Progress, task: object) -> Callable[[int], None]:
    return lambda requests: progress.update(task, completed=requests)  # type: ignore[arg-type]


@contextmanager
def _few_collections() -> Iterator[None]:
    """Each looks at all workers and at all that is under way, and finds little: without this it takes half the time."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _table(outcomes: list[Outcome]) -> Table:
    """A row for each measure: there are more of them than policies, and as rows they need less width."""
    table = Table()
    table.add_column("policy")
    for outcome in outcomes:
        table.add_column(outcome.policy, justify="right", overflow="fold")
    measured = [_measures(outcome) for outcome in outcomes]
    for measure in measured[0]:
        table.add_row(measure, *(each[measure] for each in measured))
    return table


def _measures(outcome: Outcome) -> dict[str, str]:
    return {
        "good/s": f"{outcome.goodput:.2f}",
        "done": f"{outcome.done:,}",
        "refused": f"{outcome.refused:,}",
        "failed": f"{outcome.failed.total():,}",
        "retried": f"{outcome.moves['retried']:,}",
        "resumed": f"{outcome.moves['resumed']:,}",
        "queue p50, s": _seconds(outcome.queueing_s, 0.5),
        "queue p99, s": _seconds(outcome.queueing_s, 0.99),
        "first token p50, s": _seconds(outcome.first_token_s, 0.5),
        "first token p99, s": _seconds(outcome.first_token_s, 0.99),
        "tokens/s": f"{outcome.output_tokens / outcome.seconds if outcome.seconds else 0:,.0f}",
        "cached": f"{outcome.cached:.1%}",
        "hot spot": f"{outcome.hot_spot:.2f}",
        "longest queue": f"{outcome.longest_queue:,}",
        "load by worker": blocks(outcome.loads, width=8),
    }


def _seconds(ordered: Sequence[float], share: float) -> str:
    return f"{quantile(ordered, share):.3f}"


def _try(path: Path) -> None:
    """Whether it can be written is told before the run, which may take long, and nothing is changed."""
    is_new = not path.exists()
    with _writing(path):
        path.open("a").close()
    if is_new:
        path.unlink()


def _write(path: Path, text: str) -> None:
    with _writing(path):
        path.write_text(text, encoding="utf-8")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot write this file: {error.strerror or error}", file=str(path)) from None
