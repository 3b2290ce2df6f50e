"""`python -m kclf` is the `kclf` command."""

from .cli import main

main()
