"""``python -m eaglerl``: the command line, where its script is not on the path."""

from eaglerl.cli import main

main()
