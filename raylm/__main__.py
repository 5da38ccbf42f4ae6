"""`python -m raylm`: the command line, where the command itself is not on the PATH."""

from raylm.cli.main import main

main()
