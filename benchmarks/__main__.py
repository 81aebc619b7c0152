"""Run a command: `python -m benchmarks <command>` calls `main(argv)` of its module."""

import argparse
import importlib
import sys

COMMANDS = {
    "synthetic": "eight rules on synthetic functions: figure 1 of the paper",
    "moments": "both moments against the true gradient: figure 2 of the paper",
    "attack": "black-box attack on an image classifier: table 1 of the paper",
    "estimators": "all estimators with three rules, at equal function values",
    "report": "tables and figures from result lines; runs no experiment",
    "speed": "time and memory of one step",
    "finetune": "fine-tuning of a language model: figure 3 of the paper",
    "devices": "one run on the devices of several processes, with equal bits",
    "pool": "throughput of workers that evaluate a Python function",
    "memory": "memory of a fine-tuning step by mode, without running it",
    "calibration": "settings of `radazo.calibrate` against the best of a grid",
    "journal": "speed of a replay from a journal",
    "untuned": "`zo_auto`, for which nothing is tuned, against tuned rules",
    "peers": "radazo against evosax, EvoTorch, pycma, nevergrad and others",
}

EXTRAS = {"finetune": "language", "peers": "peers"}  # Others need `benchmarks`.


def main(argv: list[str]) -> None:
    lines = "\n".join(f"  {name:<12}{what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Experiments with radazo.",
        epilog=f"commands:\n{lines}\n\n"
        "`python -m benchmarks <command> --help` lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="command")
    # The remaining options belong to the command; only its module is imported.
    command = parser.parse_args(argv[:1]).command
    try:
        module = importlib.import_module(f"benchmarks.{command}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("benchmarks", "radazo"):
            raise  # No extra has it.
        extra = EXTRAS.get(command, "benchmarks")
        parser.error(f"{error}: run `pip install '.[{extra}]'`")
    module.main(argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
