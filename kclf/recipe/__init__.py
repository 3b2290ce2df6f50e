"""The recipe: the last layer solved, then everything tuned gently from there, and the better of both kept."""

from .best import BestFit, fit_best
from .budget import EFFORTS, Plan, plan_best
from .deciding import fit_decision, fit_temperature
from .linear_probe import LinearProbe, fit_linear_probe, solve_linear_probe, write_linear_probe
from .tuning import Comparison, describe_estimate

__all__ = [
    "EFFORTS",
    "BestFit",
    "Comparison",
    "LinearProbe",
    "Plan",
    "describe_estimate",
    "fit_best",
    "fit_decision",
    "fit_linear_probe",
    "fit_temperature",
    "plan_best",
    "solve_linear_probe",
    "write_linear_probe",
]
