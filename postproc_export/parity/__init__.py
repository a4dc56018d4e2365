"""Proof that an attached file decides as the eager reference does, on every runtime at hand."""

from postproc_export.parity.check import assert_parity, check_parity
from postproc_export.parity.reports.report import Check, ParityReport

__all__ = ["Check", "ParityReport", "assert_parity", "check_parity"]
