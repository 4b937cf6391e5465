"""The command line: ``python -m fusedloss info | bench | demo``."""

from __future__ import annotations

import argparse
import sys

from ._config import show_config

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells give it: 128 and the number of SIGINT."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; arguments after ``bench`` and ``demo`` go to them. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fusedloss", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, backends, CPU level, threads")
    for name, text in (("bench", "time fusedloss against eager"), ("demo", "train with it")):
        commands.add_parser(name, help=text, add_help=False)
    arguments, rest = parser.parse_known_args(argv)
    try:
        if arguments.command == "demo":
            from .demo import main as demo

            return demo(rest)
        if arguments.command == "bench":
            from .benchmarks.run import main as bench

            status: int = bench(rest)
            return status
    except KeyboardInterrupt:  # where there is nothing to keep yet
        print("INTERRUPTED", file=sys.stderr)
        return INTERRUPTED
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    print(show_config())
    return 0


if __name__ == "__main__":
    sys.exit(main())
