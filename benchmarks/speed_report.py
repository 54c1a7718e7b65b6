"""What a run of the speed benchmark prints and writes: lines of a table, JSON, and a page of Markdown."""

import json
from pathlib import Path
from typing import Any

import cli
from benchmarks.speed_timing import Row

BUSY = 0.1  # cores of other work, from which on the figures of a section are marked

TITLES = {
    "inference": "The network and the sampling loop, in memory",
    "files": "inference.py, files in and files out",
    "memory": "Memory of inference.py over a long video",
    "training": "A training step",
    "loading": "The loader",
    "estimate": "What full trainings would cost: estimates",
    "earlier": "Against the earlier design (`benchmarks/earlier_design.py`)",
    "optimisations": "Each optimisation by itself: how many times as fast with it as without",
    "growth": "How time and memory of a frame grow",
    "evaluation": "The metrics",
}


def describe(about: dict[str, Any]) -> list[str]:
    """The machine, in two lines."""
    rates = ", ".join(f"{kind} {rate:,.0f} GFLOP/s" for kind, rate in about["matrix_rate_gflops"].items())
    return [
        f"{about['device']}, {about['cores']} cores, {about['threads']} threads ({about['cpu']}), "
        f"torch {about['torch']}, autocast {about['autocast']}",
        f"measured matrix rate: {rates}",
    ]


def line(row: Row, before: dict[str, Any] | None) -> str:
    """One row of the printed table: name, median, unit, spread, comparison, note."""
    value, spread, compared = cells(row, before)
    return f"  {row.name:<58}{value:>9} {row.unit:<11}{spread:<27} {compared:<22} {row.note}".rstrip()


def cells(row: Row, before: dict[str, Any] | None = None) -> tuple[str, str, str]:
    """The median; its spread and of how many; and how it compares."""
    value = "-" if row.value is None else number(row.value)
    spread = "" if row.low is None else f"[{number(row.low)} .. {number(row.high)}] of {row.count}"
    compared = ""
    if before and before.get("value") and row.value is not None:
        compared = f"was {number(before['value'])}: x {row.value / before['value']:.2f}"
    return value, spread, compared


def number(value: float) -> str:
    """Three digits."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def busy(cores: float | None) -> str:
    """A warning where the machine did much else; else nothing."""
    if (cores or 0) <= BUSY:
        return ""
    return f"the machine was busy: {cores:.2f} cores of other work meanwhile, so these are too slow"


def write_json(path: Path, about: dict[str, Any], figures: list[dict[str, Any]]) -> None:
    with cli.writable(path):
        path.write_text(json.dumps({"machine": about, "figures": figures}, indent=1) + "\n")


def earlier_figures(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The figures of a file by section and name. Raises UsageError for a file that holds none."""
    try:
        figures = json.loads(path.read_text())["figures"]
        return {(figure["section"], figure["name"]): figure for figure in figures}
    except (ValueError, KeyError, TypeError):
        raise cli.UsageError(f"{path} holds no figures of this benchmark: --compare takes a file of --json") from None


def write_markdown(
    path: Path, command: str, about: dict[str, Any], figures: list[dict[str, Any]], before: dict[tuple, dict]
) -> None:
    """The whole report as a page: the machine, then a table for each section."""
    compare = "compared | " if before else ""
    page = [
        "# Speed", "", "Written by `" + command + "`; nothing here is typed in.", "",
        *(f"* {text}" for text in describe(about)), "* medians, with the smallest, the largest and their number", "",
    ]  # fmt: skip
    for section in dict.fromkeys(figure["section"] for figure in figures):
        page += [f"## {TITLES[section]}", ""]
        seconds = about["seconds"].get(section)
        took = f"Measured in {seconds:,.0f} s. " if seconds else ""
        page += [took + busy(about["other_work_cores"].get(section)), ""]
        page += [f"| what | median | | spread | {compare}note |", "|---|---|---|---|" + "---|" * (2 if before else 1)]
        for figure in (f for f in figures if f["section"] == section):
            row = Row(**{k: v for k, v in figure.items() if k != "section"})
            value, spread, compared = cells(row, before.get((section, row.name)))
            middle = f" {compared} |" if before else ""
            note = row.note.replace("|", "/")
            page.append(f"| {row.name} | {value} | {row.unit} | {spread} |{middle} {note} |")
        page.append("")
    with cli.writable(path):
        path.write_text("\n".join(page))
