"""The command line `eaglerl`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: the arguments after the program's name; `sys.argv[1:]` if None.

    Raises:
        SystemExit: always; 0 success, 1 the command failed, 2 wrong usage, 130 interrupted.
    """
    try:
        # Imported here so that Ctrl-C during the imports also ends with code 130.
        from eaglerl.cli.app import app

        app(args=None if arguments is None else list(arguments), prog_name="eaglerl")
    except KeyboardInterrupt:
        sys.exit(130)
