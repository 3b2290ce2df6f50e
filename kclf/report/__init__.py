"""The report of a run: one self-contained page; and the page on which a ledger is edited."""

from .inputs import ReportInputs, read_run
from .model_card import write_model_card
from .page import write_ledger_page, write_report

__all__ = ["ReportInputs", "read_run", "write_ledger_page", "write_model_card", "write_report"]
