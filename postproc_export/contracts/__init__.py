"""Whether a file fits the programs of this field that run such models."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from postproc_export.contracts.anomalib import PROGRAM as ANOMALIB
from postproc_export.contracts.anomalib import anomalib_requirements
from postproc_export.contracts.model_api import PROGRAM as MODEL_API
from postproc_export.contracts.model_api import model_api_requirements
from postproc_export.contracts.reading import ModelReading
from postproc_export.contracts.requirement import ContractReport, Requirement
from postproc_export.errors import UsageError

__all__ = ["CONTRACTS", "ContractReport", "Requirement", "check_contract"]

CONTRACTS: Final[Mapping[str, tuple[str, Callable[[ModelReading], Iterator[Requirement]]]]] = {
    "anomalib": (ANOMALIB, anomalib_requirements),
    "model-api": (MODEL_API, model_api_requirements),
}


def check_contract(path: str | Path, contract: str) -> ContractReport:
    """Check a file against what a program asks of it, without feeding it anything.

    Parameters
    ----------
    path
        An ``.onnx`` or ``.xml`` file.
    contract
        ``"anomalib"`` for Anomalib's `OpenVINOInferencer`, ``"model-api"`` for OpenVINO Model API's `AnomalyDetection`.

    Raises
    ------
    UsageError
        If the contract is not known.
    FileError, UnsupportedModelError
        If the file cannot be read.
    MissingDependencyError
        If OpenVINO, which both programs read files with, is not installed.
    """
    if contract not in CONTRACTS:
        raise UsageError(f"the contract '{contract}' is not known", needed=" or ".join(CONTRACTS))
    program, requirements = CONTRACTS[contract]
    found = tuple(requirements(ModelReading.load(Path(path))))
    return ContractReport(contract=contract, program=program, requirements=found)
