"""`python -m flawmap` is the command."""

from flawmap.cli import main

main()
