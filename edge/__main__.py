"""The program `edge`, and `python -m edge`: the command line, which can be interrupted also while it is imported."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Import the command line and run it."""
    try:
        from edge.cli.main import main as run

        run()
    except KeyboardInterrupt:  # of an import, or while Typer makes the commands
        sys.stderr.write("interrupted; nothing was written\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
