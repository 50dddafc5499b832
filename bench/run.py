"""Benchmarks of gradfit beside its peers: ``python bench/run.py [--only NAME ...] [--quick] [--json FILE]``.

Every ratio is the median of pairs measured in turn, in this one run. A peer that is not installed is skipped, with a line that says
so. The exit code is 0 also where a figure is missed: a benchmark informs, it does not judge.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

from cases import CASES
from machine import describe
from table import HEADINGS, WIDTHS, Notice, Row, line
from timing import QUICK, Effort

PREFACE = """\
Absolute times drift from run to run, by half on a shared machine; each ratio is the median of pairs taken side by side, gradfit and
the peer in turn. "x faster": the peer's time over gradfit's; "x as long": gradfit's time over the peer's. "spread" is the
interquartile range of the ratios. gradfit is timed through its public call, with result, covariance and history; compiling is not
timed, of nobody, but under "latency"."""


def main() -> None:
    """Run the cases asked for and print them as they come."""
    asked = _arguments()
    effort = QUICK if asked.quick else Effort()
    machine = describe()
    for name, text in machine.items():
        print(f"{name:9} {text}")
    print(f"\n{PREFACE}")
    began = perf_counter()
    measured: list[tuple[str, Row]] = []
    for name in asked.only or CASES:
        print(f"\n{name}: {(CASES[name].__doc__ or '').strip()}", line(HEADINGS), "-" * (sum(WIDTHS) + 16), sep="\n", flush=True)
        for item in _guarded(name, effort):
            if isinstance(item, Row):
                measured.append((name, item))
            print(line(item.cells()) if isinstance(item, Row) else f"  ({item.text})", flush=True)
    print(f"\n{_summary([row for _, row in measured])} The run took {perf_counter() - began:.0f} s.")
    if asked.json is not None:
        rows = [{"case": name, **asdict(row), "reached": row.reached} for name, row in measured]
        asked.json.write_text(json.dumps({**machine, "quick": asked.quick, "rows": rows}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Benchmarks of gradfit beside its peers, as ratios side by side.")
    parser.add_argument("--only", nargs="+", choices=tuple(CASES), metavar="NAME", help=f"only these: {', '.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="fewer pairs, float64 only, no torch.compile, 1e6 rows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file as well")
    return parser.parse_args()


def _guarded(name: str, effort: Effort) -> Iterator[Row | Notice]:
    """Run a case; what goes wrong in it becomes a line, and the next case follows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield from CASES[name](effort)
        except Exception as error:  # noqa: BLE001 - one broken case must not take the others along
            yield Notice(f"the case ended early: {type(error).__name__}: {error}")


def _summary(rows: list[Row]) -> str:
    counts = Counter(row.reached for row in rows)
    required = sum(row.figure.must is not None and row.value is not None for row in rows)
    reached = sum(row.figure.must is not None and row.reached in ("must", "aim") for row in rows)
    aims = sum(row.figure.aim is not None and row.value is not None for row in rows)
    return f"Figures that must be reached: {reached} of {required}. Aims reached: {counts['aim']} of {aims}."


if __name__ == "__main__":
    main()
