"""``python -m eaglerl``: the command line, for when its script is not on the path."""

from eaglerl.cli import main

main()
