"""Checks of the file itself that run nothing: what changed besides the tail, and whether it fits a program."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from postproc_export.contracts import ContractReport, check_contract
from postproc_export.graphs.metadata import METADATA_KEY
from postproc_export.parity.reports.report import Check, failed
from postproc_export.preservation import compare_files
from postproc_export.rewrite.inspect import inspect_model


@dataclass(frozen=True, slots=True)
class FileChecks:
    """What was checked, and what could not be; falsy where nothing was asked for."""

    checks: tuple[Check, ...] = ()
    not_checked: tuple[str, ...] = ()

    @classmethod
    def run(cls, attached: Path, *, preserved: str | Path | None, contracts: Iterable[str]) -> Self:
        """Run what was asked for.

        Parameters
        ----------
        attached
            The attached file.
        preserved
            The raw file to compare it with.
        contracts
            The programs that it is to fit; see `check_contract`.

        Raises
        ------
        UsageError, FileError, MetadataError, UnsupportedModelError, ModelFileError
            If a file cannot be read, or an option is not known.
        """
        checks: list[Check] = []
        not_checked: list[str] = []
        if preserved is not None:
            found = compare_files(preserved, attached)
            check = Check(name="preserved", passed=bool(found), message=found.describe(), details=found.to_json())
            checks.append(check)
            not_checked += [f"besides the tail, {sentence}" for sentence in found.not_judged]
        for contract in contracts:
            report = check_contract(attached, contract)
            checks += _contract_checks(report)
            not_checked += report.not_judged()
        return cls(tuple(checks), tuple(not_checked))

    def __bool__(self) -> bool:
        return bool(self.checks)


def record_is_missing(attached: Path) -> Check | None:
    """Return the miss of a file that has no record of its tail; None where there is one."""
    if inspect_model(attached).attached_by is not None:
        return None
    return failed(
        "record",
        f"no entry '{METADATA_KEY}' in the file's metadata: attaching did not write it, or it was stripped since; "
        "neither constants nor decisions can be checked",
    )


def _contract_checks(report: ContractReport) -> Iterator[Check]:
    for item in report.requirements:
        if item.holds is not None:
            name = f"{report.contract}/{item.name.replace(' ', '-')}"
            details = {"program": report.program, **item.to_json()}
            yield Check(name=name, passed=item.holds, message=item.describe(), details=details)
