"""The recipe: the last layer solved, then everything tuned gently from there, and the better of both kept."""

from .linear_probe import LinearProbe, fit_linear_probe, solve_linear_probe, write_linear_probe

__all__ = ["LinearProbe", "fit_linear_probe", "solve_linear_probe", "write_linear_probe"]
