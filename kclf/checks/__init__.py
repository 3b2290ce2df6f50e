"""What is wrong with the photos and their labels, as a ledger to edit, and the way to apply it."""

from .checking import check
from .duplicates import Pair, same_activations, same_files, same_looks
from .findings import Finding, Findings, read_ledger
from .ledger import Change, Changes, apply_ledger, undo_ledger
from .wrong_labels import LabelIssue, label_issues, out_of_fold_probabilities

__all__ = [
    "Change",
    "Changes",
    "Finding",
    "Findings",
    "LabelIssue",
    "Pair",
    "apply_ledger",
    "check",
    "label_issues",
    "out_of_fold_probabilities",
    "read_ledger",
    "same_activations",
    "same_files",
    "same_looks",
    "undo_ledger",
]
