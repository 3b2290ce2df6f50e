"""What the rooms share and users never import: arguments, files, locks, hooks, the host."""
