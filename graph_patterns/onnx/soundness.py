"""Whether an edited model is as sound as it was: what the format's checker says, and what it does not look at."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

import onnx

from graph_patterns.errors import ModelFileError
from graph_patterns.onnx.container import OnnxFile
from graph_patterns.onnx.removal import reads
from graph_patterns.onnx.view import default_opset

_FAULTS: Final = {
    "output": "outputs that nothing computes",
    "twice": "values or outputs that are there twice",
    "read": "values that are read and that nothing computes before",
}


@dataclass(frozen=True, slots=True)
class Soundness:
    """What is wrong with a model, its weights left out.

    Parameters
    ----------
    complaint
        What the checker of ONNX says of the graph; None where it is content.
    inferred
        What it says when it infers types and shapes as well.
    faults
        How many outputs, definitions and reads are wrong. The checker does not look at all of them, and says no more
        than the first thing that it finds.
    """

    complaint: str | None
    inferred: str | None
    faults: Counter[str]

    @classmethod
    def of(cls, file: OnnxFile, *, opset: int = 0) -> Self:
        """Look at the model of a file as it is now.

        Parameters
        ----------
        file
            The file.
        opset
            The version of the default operator set that counts where the model imports none, as some do; 0 for none.
        """
        serialised = file.without_payloads()
        if opset and not default_opset(file.model):
            assumed = onnx.ModelProto(opset_import=[onnx.helper.make_opsetid("", opset)])
            serialised += assumed.SerializeToString()  # protobuf joins the lists of two messages
        inferred = _complaint(serialised, full=True)
        complaint = None if inferred is None else _complaint(serialised, full=False)
        return cls(complaint, inferred, Counter(_faults(file.model.graph)))

    def refuse_worse(self, after: "Soundness", *, where: str) -> None:
        """Refuse an edited model in which something is wrong that was not.

        Raises
        ------
        ModelFileError
            If there is something.
        """
        found = [text for kind, text in _FAULTS.items() if after.faults[kind] > self.faults[kind]]
        if self.complaint is None and after.complaint is not None:
            found.append(after.complaint)
        elif self.inferred is None and after.inferred is not None:
            found.append(after.inferred)
        if found:
            raise ModelFileError(
                f"{where} is not written: it would be less sound than the model that it is made of",
                found="; ".join(" ".join(text.split()) for text in found)[:400],
                needed="no complaint of onnx.checker that the input did not draw",
                fix="attach to the original again; if this is the original, please report it",
            )


def _complaint(serialised: bytes, *, full: bool) -> str | None:
    try:
        onnx.checker.check_model(serialised, full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        return str(error)
    return None


def _faults(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the kind of each fault of the main graph."""
    known = {item.name for item in graph.input} | {tensor.name for tensor in graph.initializer}
    known |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        # what a nested graph computes for itself counts as read here, before an edit and after it
        yield from ("read" for name in reads(node) if name not in known)
        for name in node.output:
            if name and name in known:
                yield "twice"
            known.add(name)
    names = [item.name for item in graph.output]
    yield from ("output" for name in names if name not in known)
    yield from ("twice" for _ in range(len(names) - len(set(names))))
    if not names:
        yield "output"
