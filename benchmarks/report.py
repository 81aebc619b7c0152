"""Write the tables and figures of all experiments, from their result lines alone.

  python -m benchmarks report                      of the committed lines
  python -m benchmarks report --results benchmarks/output    of your own

It runs no experiment. Each section states the command, versions and device of its
lines.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import (
    attack_report,
    calibration_report,
    estimators_figures,
    estimators_report,
    finetune_report,
    journal,
    memory,
    moments,
    overview,
    peers,
    pool,
    records,
    speed,
    synthetic_figures,
    synthetic_report,
    untuned_report,
)

Lines = list[dict[str, Any]]


class Section(NamedTuple):
    """The result lines of an experiment, and how to present them.

    Attributes:
      name: Of the command, and of its file.
      options: Options of its commands.
      title: Heading.
      markdown: `markdown(lines) -> str`, the tables.
      draw: `draw(lines, folder) -> paths` of the figures.
    """

    name: str
    options: tuple[str, ...]
    title: str
    markdown: Callable[[Lines], str]
    draw: Callable[[Lines, Path], list[Path]]


LONG = (
    " --dim 10000 --steps 26000 --seeds 5 --functions quadratic "
    "--methods radazo,zo_adamm,zo_rmsprop"
)
ONE = " --dataset mnist --methods radazo,zo_adamm,zo_adamm_matched --data-dir DIR"
LARGE = " --model opt-1.3b --dtype bfloat16 --batch-size 16"
LARGER = " --model opt-13b --dtype bfloat16 --batch-size 16"

SECTIONS = (
    Section(
        "synthetic",
        (" --full", LONG),
        "Synthetic functions (figure 1 of the paper)",
        synthetic_report.markdown,
        synthetic_figures.draw,
    ),
    Section(
        "moments",
        ("",),
        "First and second moments against the true gradient (figure 2)",
        moments.markdown,
        lambda lines, folder: [moments.draw(lines, folder)],
    ),
    Section(
        "attack",
        ("", " --methods zo_adamm_matched", ONE, " --full --data-dir DIR"),
        "Black-box attack (table 1)",
        attack_report.markdown,
        lambda lines, folder: [attack_report.draw(lines, folder / "attack.png")],
    ),
    Section(
        "untuned",
        ("",),
        "Nothing tuned, against tuned rules",
        untuned_report.markdown,
        untuned_report.draw,
    ),
    Section(
        "estimators",
        (" --full",),
        "Estimators at equal function values",
        estimators_report.markdown,
        estimators_figures.draw,
    ),
    Section(
        "peers",
        ("",),
        "Against other packages",
        peers.markdown,
        lambda lines, folder: [peers.draw(lines, folder / "peers.png")],
    ),
    Section(
        "calibration",
        ("",),
        "Calibration against a tuned grid",
        calibration_report.markdown,
        lambda *_: [],
    ),
    Section(
        "finetune",
        (" --full --data-dir DIR",),
        "Fine-tuning a language model (figure 3)",
        finetune_report.markdown,
        finetune_report.draw,
    ),
    Section(
        "memory",
        (" --repeats 3", LARGE, LARGER),
        "Memory of a fine-tuning step",
        memory.markdown,
        lambda *_: [],
    ),
    Section(
        "speed", ("",), "Time and memory of one step", speed.markdown, lambda *_: []
    ),
    Section("pool", ("",), "Throughput of a pool", pool.markdown, lambda *_: []),
    Section("journal", ("",), "Replay of a journal", journal.markdown, lambda *_: []),
)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks report",
        description="Write tables and figures from result lines; run no experiment.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--results", type=Path, default=Path(__file__).parent / "results", help="lines")
    add("--output", type=Path, default=Path("benchmarks/output"), help="folder")
    args = parser.parse_args(argv)
    console = records.console()
    found = {s: records.read(args.results / f"{s.name}.jsonl") for s in SECTIONS}
    if not any(found.values()):
        raise SystemExit(
            f"benchmarks report: there are no result lines in {args.results}."
        )
    args.output.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for section, lines in found.items():
        drawn[section] = section.draw(lines, args.output) if lines else []
        for path in drawn[section]:
            console.print(f"Figure: {path}")
    by_name = {section.name: lines for section, lines in found.items()}
    front = overview.draw(by_name["synthetic"], by_name["attack"], args.output)
    path = args.output / "report.md"
    path.write_text(report(found, drawn, front), encoding="utf-8")
    console.print(f"Tables: {path}")


def report(
    found: dict[Section, Lines], drawn: dict[Section, list[Path]], front: list[Path]
) -> str:
    """Return the whole text; it shows the figures of its own folder."""
    parts = [
        "# Results\n",
        "Written by `python -m benchmarks report` from result lines.\n",
    ]
    for path in front:
        parts += [f"![{path.stem}]({path.name})\n", overview.CAPTION]
    for section, lines in found.items():
        if lines:
            parts += [f"## {section.title}\n", provenance(section, lines)]
            parts += [f"![{path.stem}]({path.name})\n" for path in drawn[section]]
            parts += [section.markdown(lines).rstrip("\n") + "\n"]
    return "\n".join(parts)


def provenance(section: Section, lines: Lines) -> str:
    """Return commands, versions, devices, dates and commits of the lines."""
    versions = sorted({str_of(line["versions"]) for line in lines})
    devices = sorted(
        {f"{x['device']['kind']}, {x['device']['cpu_cores']} core(s)" for x in lines}
    )
    dates = sorted(line["date"][:10] for line in lines)
    commits = sorted({str(line["commit"]) for line in lines})
    commands = [f"`python -m benchmarks {section.name}{x}`" for x in section.options]
    return (
        f"To repeat: {', '.join(commands)}. {len(lines)} lines, "
        f"{dates[0]} to {dates[-1]}; {'; '.join(versions)}; {'; '.join(devices)}; "
        f"commits {', '.join(commits)}.\n"
    )


def str_of(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
