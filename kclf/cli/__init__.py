"""The `kclf` command."""
