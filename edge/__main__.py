"""`python -m edge`: the command line."""

from edge.cli.main import main

main()
