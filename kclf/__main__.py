"""`python -m kclf` is the `kclf` command."""

from .cli.main import main

main()
