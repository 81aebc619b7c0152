"""`python -m benchmarks <command>`: each command is the `main(argv)` of one module."""

import argparse
import importlib
import sys

COMMANDS = {
    "synthetic": "eight rules on synthetic functions: figure 1 of the paper",
    "moments": "both moments against the true gradient: figure 2 of the paper",
    "attack": "black-box attack on an image classifier: table 1 of the paper",
    "estimators": "all estimators under three rules, at equal function values",
    "report": "tables and figures of result lines; runs nothing",
    "speed": "time and memory of one step",
    "finetune": "a language model tuned with function values: figure 3 of the paper",
    "devices": "one run over the devices of several processes, bit for bit",
    "pool": "throughput of workers that evaluate a function of plain Python",
    "memory": "memory of a step of fine-tuning, by mode, without running it",
    "calibration": "what is chosen without tuning, against the best of a grid",
    "journal": "how fast a run is made again from its journal",
    "peers": "radazo against evosax, EvoTorch, pycma, nevergrad and others",
}


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
    # The rest belongs to the command, whose module is loaded only if it is the one.
    args = parser.parse_args(argv[:1])
    importlib.import_module(f"benchmarks.{args.command}").main(argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
