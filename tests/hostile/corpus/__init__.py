"""All hostile requests, by the rows of the threat list (S: weaknesses of others, F: faults) that they belong to."""

from __future__ import annotations

from tests.hostile.case import Case
from tests.hostile.corpus import (
    amounts,
    browsers,
    code,
    encodings,
    engines,
    fields,
    framings,
    heads,
    media,
    names,
    paths,
    syntax,
    upstream,
)

__all__ = ["CORPUS", "GENERATED", "WRITTEN"]

WRITTEN: dict[str, Case] = {
    f"{rows}: {name}": case
    for rows, cases in {
        "S1 S2": upstream.CASES,
        "S3": media.CASES,
        "S4 S17 S20": paths.CASES,
        "S6 S7": code.CASES,
        "S8": amounts.CASES,
        "S9 S10": engines.CASES,
        "S11 S22 F36": encodings.CASES,
        "S12": heads.CASES,
        "S13 F37 F39": framings.CASES,
        "S16 S20": names.CASES,
        "S18 S19": browsers.CASES,
        "F32": syntax.CASES,
    }.items()
    for name, case in cases.items()
}
GENERATED: dict[str, Case] = {f"F33 S8: {name}": case for name, case in fields.CASES.items()}
CORPUS = WRITTEN | GENERATED
