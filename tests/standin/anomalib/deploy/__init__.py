"""How weights can be compressed."""

from enum import StrEnum


class CompressionType(StrEnum):
    """By name; the last one needs labels while it quantises."""

    FP16 = "fp16"
    INT8_ACQ = "int8_acq"
