"""A kit: what a file has to make of raw values and of whole inputs, in a folder for machines that cannot be reached.

docs/vectors.md describes the folder. ``kit.json`` says what is in it and what decides, so that judging needs no model.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias, get_args
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from graph_patterns.onnx.graph import ELEMENT_TYPES
from postproc_export import __version__
from postproc_export.calibration.shards import npz_array
from postproc_export.check.attached import Decider, numpy_dtype, packed_of
from postproc_export.check.findings import plain
from postproc_export.check.reference import TailReference
from postproc_export.errors import FileError, MetadataError, PostprocError
from postproc_export.options import TailOptions
from postproc_export.ports import Guard, PortInfo, Selection
from postproc_export.process import digest
from postproc_export.stats import LEVELS, CalibrationStats, Level
from postproc_export.tail import NanTest, Tail, TailForm, build_tail
from postproc_export.validation import check_file, kind_of_file, read_json, stated_twice

Suite: TypeAlias = Literal["tail", "tail_open", "tail_adjusted", "whole"]
Arrays: TypeAlias = dict[str, NDArray[Any]]

MANIFEST: Final = "kit.json"
SUITES: Final[tuple[Suite, ...]] = get_args(Suite)
VERSION: Final = 1
RAW: Final = "raw.npz"
RAW_NAMES: Final[Mapping[Level, str]] = {"image": "raw_score", "pixel": "raw_map"}
AGAIN: Final = "copy the kit again, or write it again with vectors"


def tail_json(tail: Tail) -> dict[str, Any]:
    """Return all that decides: statistics without what else they record, options, raw values, guard."""
    options = replace(tail.resolved_options, match_thresholds=False)
    alone = {level: stats and replace(stats, details={}) for level in LEVELS for stats in [tail.stats.level(level)]}
    return {
        "statistics": CalibrationStats(image=alone["image"], pixel=alone["pixel"]).to_json(),
        "options": {item.name: plain(getattr(options, item.name)) for item in fields(TailOptions)},
        "raw": {level: port_json(port) for level, port in tail.raw.items()},
        "guard": tail.guard.form,
        "nan_test": tail.form.nan_test,
    }


def port_json(port: PortInfo) -> dict[str, Any]:
    """Return name, element type and shape of a port."""
    return {"name": port.name, "dtype": port.dtype, "shape": None if port.shape is None else list(port.shape)}


def _port(document: Mapping[str, Any]) -> PortInfo:
    shape = document["shape"]
    return PortInfo(document["name"], document["dtype"], None if shape is None else tuple(shape))


def read_tail(document: Mapping[str, Any], *, where: str) -> Tail:
    """Return the tail that `tail_json` wrote down. Raises MetadataError if it is not legal."""
    try:
        ports = {level: _port(port) for level, port in document["raw"].items()}
        options = TailOptions(**document["options"])
        guard, nan_test = _among(document["guard"], (None, "image", "all")), document["nan_test"]
        _among(nan_test, get_args(NanTest))
        return build_tail(
            CalibrationStats.from_json(document.get("statistics"), where=where),
            options,
            Selection(ports.get("image"), ports.get("pixel")),
            form=TailForm(nan_test),
            default_mask_dtype="bool",
            guard=Guard(guard),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MetadataError(f"{where}: the tail is not legal", found=" ".join(str(error).split())) from error


def _among(value: Any, legal: Sequence[Any]) -> Any:
    if value not in legal:
        raise ValueError(f"{value!r}")
    return value


def outputs_as_file(reference: TailReference, made: Mapping[str, NDArray[Any]]) -> Arrays:
    """Return what a reference gives as the file would: each output of its own type, or all in the packed one."""
    tail = reference.decider.tail
    if tail.options.is_packed:
        return {tail.outputs[0].name: packed_of(made)}
    return {part.name: made[part.name].astype(part.dtype) for part in tail.parts}


def write_set(folder: Path, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]) -> None:
    """Write an ONNX test-data set, and beside it the same arrays by name."""
    folder.mkdir(parents=True)
    for kind, arrays in (("input", inputs), ("output", outputs)):
        for number, (name, array) in enumerate(arrays.items()):
            (folder / f"{kind}_{number}.pb").write_bytes(_tensor(name, array))
        write_npz(folder / f"{kind}s.npz", arrays)


def _tensor(name: str, array: NDArray[Any]) -> bytes:
    kind = ELEMENT_TYPES.get(array.dtype.name) or onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False) if array.dtype.kind != "V" else array
    tensor = onnx.TensorProto(name=name, data_type=kind, dims=array.shape, raw_data=little.tobytes())
    content: bytes = tensor.SerializeToString(deterministic=True)
    return content


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays so that the same ones give the same bytes on every machine; bfloat16 as the bits that it has."""
    with ZipFile(path, "w") as file:
        for name, array in arrays.items():
            entry = ZipInfo(f"{name}.npy")  # of 1 January 1980, stored as it is
            entry.create_system = 3
            with file.open(entry, "w", force_zip64=True) as stream:
                bits = array.view(np.uint16) if array.dtype.name == "bfloat16" else array
                np.lib.format.write_array(stream, bits, allow_pickle=False)


def read_npz(path: Path, dtypes: Mapping[str, str]) -> Arrays:
    """Read the arrays of a kit's own file; `dtypes` are those that NumPy has no name for."""
    with explained_damage(path):
        with ZipFile(path) as file:
            named = {info.filename.removesuffix(".npy"): info for info in file.infolist()}
        arrays = {name: npz_array(path, info, verify=False).whole() for name, info in named.items()}
    narrow = {name: numpy_dtype(PortInfo(name, dtype, None)) for name, dtype in dtypes.items() if dtype == "bfloat16"}
    return {name: array.view(narrow[name]) if name in narrow else array for name, array in arrays.items()}


class Kit:
    """The manifest of a kit, and the folder that it lies in."""

    def __init__(self, folder: Path, document: Mapping[str, Any]) -> None:
        self.folder, self.document = folder, document

    @classmethod
    def write(cls, folder: Path, document: Mapping[str, Any]) -> Self:
        """Write the manifest of the files in a folder, with the digest of each and of itself."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): digest(path) for path in paths}
        whole = {"kit_version": VERSION, "version": __version__, **plain(document), "files": files}
        whole = {"kit_version": VERSION, "digest": _digest(whole), **whole}
        text = json.dumps(whole, indent=1, allow_nan=False)
        (folder / MANIFEST).write_bytes(f"{text}\n".encode())
        return cls(folder, whole)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the manifest of a kit, all files of which have to be there as they were written.

        Raises FileError or MetadataError where they are not.
        """
        if not folder.is_dir():
            found = "a file" if folder.exists() else "no such folder"
            raise FileError(
                f"cannot read the kit {folder}", found=found, needed="a folder that vectors wrote", fix="check the path"
            )
        path = folder / MANIFEST
        document = read_manifest(path)
        kit = cls(folder, document)
        sets = [(suite, each["name"]) for suite, found in document["suites"].items() for each in found["sets"]]
        arrays = {f"{suite}/{name}/{kind}.npz" for suite, name in sets for kind in ("inputs", "outputs")}
        if lost := sorted(arrays - document["files"].keys()):
            raise MetadataError(f"{path} is not legal", found=f"no digest of {lost[0]}", fix=AGAIN)
        for name, known in document["files"].items():
            what: str | None = "a path outside of it"
            if not Path(name).is_absolute() and ".." not in Path(name).parts:
                try:
                    check_file(folder / name)  # a pipe would be waited for
                    what = None if digest(folder / name) == known else "other bytes than were written"
                except FileError as error:
                    what = error.found
            if what is not None:
                raise FileError(f"the kit is damaged: {folder / name}", found=what, fix=AGAIN)
        return kit

    @property
    def digest(self) -> str:
        """What tells the kit from every other."""
        return str(self.document["digest"])

    @property
    def decider(self) -> Decider:
        """What decides."""
        return Decider(read_tail(self.document["tail"], where=str(self.folder / MANIFEST)))

    def suite(self, name: Suite) -> Mapping[str, Any] | None:
        """Return what the manifest says of a suite; None where there is none."""
        found: Mapping[str, Any] | None = self.document["suites"].get(name)
        return found

    def inputs(self, suite: Suite, name: str) -> Arrays:
        """Return what is fed in a set, by the names of the inputs."""
        dtypes = {item["name"]: item["dtype"] for item in self.document["suites"][suite]["inputs"]}
        return read_npz(self.folder / suite / name / "inputs.npz", dtypes)

    def outputs(self, suite: Suite, name: str) -> Arrays:
        """Return what is expected in a set, by the names of the outputs."""
        return read_npz(self.folder / suite / name / "outputs.npz", {})

    def raw(self, suite: Suite, name: str) -> dict[Level, NDArray[Any]]:
        """Return the raw values of a set: what is fed to a tail, or what the machine of the kit computed."""
        if suite == "whole":
            arrays = read_npz(self.folder / suite / name / RAW, {})
            return {level: arrays[key] for level, key in RAW_NAMES.items() if key in arrays}
        arrays = self.inputs(suite, name)
        levels: Iterable[Level] = self.document["tail"]["raw"]
        names = {level: self.document["tail"]["raw"][level]["name"] for level in levels}
        return {level: arrays[given] for level, given in names.items() if given in arrays}


def read_manifest(path: Path) -> Mapping[str, Any]:
    """Read a manifest. Raises FileError or MetadataError if it is none, of another version, or was changed."""
    fix = "give the folder that postproc-export vectors wrote"
    document = read_json(path, what="the manifest", fix=fix)
    version = document.get("kit_version") if isinstance(document, dict) else None
    if not isinstance(document, dict) or version != VERSION:
        what, found = f"{path} is no manifest of a kit", None if version is None else f"kit_version {version!r}"
        raise MetadataError(what, found=found, needed=f"kit_version {VERSION}", fix=fix)
    known = {name: value for name, value in document.items() if name != "digest"}
    if _digest(known) != document.get("digest"):
        raise MetadataError(f"{path} was changed since it was written", found="its digest is another one", fix=AGAIN)
    if lacking := [key for key, is_legal in _LEGAL.items() if not is_legal(document.get(key))]:
        raise MetadataError(f"{path} is not legal", found=f"another {lacking[0]} than vectors writes", fix=AGAIN)
    return document


def _is_texts(found: object) -> bool:
    return isinstance(found, list) and all(isinstance(each, str) for each in found)


def _is_suite(name: object, suite: object) -> bool:
    """Whether a suite has all that judging reads; the sets are folders in its own."""
    if name not in SUITES or not isinstance(suite, dict) or not _is_texts(suite.get("judged_outputs")):
        return False
    lists: list[Any] = [suite.get(key) for key in ("inputs", "outputs", "sets")]
    if not all(isinstance(rows, list) and all(isinstance(row, dict) for row in rows) for rows in lists):
        return False
    inputs, outputs, sets = lists
    made = [port.get("name") for port in outputs]
    points: Any = suite.get("points")
    others: list[Any] = [suite.get(key) for key in ("raw_outputs", "fed")]
    return (
        _is_texts([port.get(key) for port in (*inputs, *outputs) for key in ("name", "dtype")])
        and all(re.fullmatch(r"test_data_set_\d+", str(each.get("name"))) for each in sets)
        and set(suite["judged_outputs"]) <= set(made)
        and all(_is_texts(port.get("aliases", [])) for port in outputs)
        and (name != "whole" or (isinstance(suite.get("is_gated"), bool) and isinstance(points, dict)))
        and (name != "whole" or all(isinstance(each, dict) and _is_texts([*each.values()]) for each in others))
        and (name != "whole" or set(suite["raw_outputs"].values()) <= set(made))
        and all(of in ("inf", "-inf") or isinstance(of, int | float) for of in (points or {}).values())
    )


_LEGAL: Final[Mapping[str, Callable[[Any], bool]]] = {
    "files": lambda found: isinstance(found, dict) and _is_texts([*found, *found.values()]),
    "left_out": _is_texts,
    "suites": lambda found: isinstance(found, dict) and all(_is_suite(*pair) for pair in found.items()),
    "tail": lambda found: isinstance(found, dict) and isinstance(found.get("raw"), dict),
    "seed": lambda found: isinstance(found, int),
}


def _digest(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Expected:
    """What another machine may have computed of one set: arrays of the types and shapes that they have to have.

    `needed` are outputs by name, `numbered` all of them in the order of the model, those that are not judged among
    them, and `raw` what else may be there: raw values by `RAW_NAMES`. `aliases` are further names of outputs.
    """

    def __init__(self, needed: Arrays, numbered: Sequence[str], raw: Arrays, aliases: Mapping[str, str]) -> None:
        self.needed, self.numbered, self.raw, self.aliases = needed, numbered, raw, aliases

    def read(self, folder: Path) -> Arrays:
        """Read ``output_K.pb`` by number, or ``outputs.npz`` by name; what is not judged is left out.

        Raises FileError or CalibrationError for what is missing, left over, damaged, or another array than these.
        """
        npz, tensors = folder / "outputs.npz", sorted(folder.glob("output_*.pb"))
        if npz.exists() and tensors:
            fix = "remove those that do not count"
            raise FileError(f"{folder} has both {npz.name} and {tensors[0].name}", needed="one of them", fix=fix)
        if not npz.exists() and not tensors:
            needed = "outputs.npz, or output_0.pb and so on"
            fix = f"write there what came out of this set, or leave {folder.parent.name} out"
            raise FileError(f"there are no outputs in {folder}", needed=needed, fix=fix)
        given = self._of_npz(npz) if npz.exists() else self._of_tensors(tensors)
        if lost := [name for name in self.needed if name not in given]:
            found = ", ".join(given) or "none of the outputs"
            raise FileError(f"{folder} has no output '{lost[0]}'", found=found, needed=", ".join(self.needed))
        return given

    def _wanted(self, name: str, where: Path, dtype: str, shape: Sequence[int]) -> bool:
        """Whether an array is judged; what is no output, or has another type or shape, is refused."""
        wanted = self.needed.get(name, self.raw.get(name))
        if wanted is None:
            if name in self.numbered:
                return False
            needed = ", ".join((*self.numbered, *self.raw))
            raise FileError(f"{where}: '{name}' is no output of this set", needed=needed, fix="leave it out")
        found, needed = f"{dtype} {list(shape)}", f"{wanted.dtype.name} {list(wanted.shape)}"
        if found != needed:
            what = f"{where}: '{name}' has another {'type' if dtype != wanted.dtype.name else 'shape'}"
            fix = "write the outputs of this very set, as the model declares them"
            raise FileError(what, found=found, needed=needed, fix=fix)
        return True

    def _of_npz(self, path: Path) -> Arrays:
        check_file(path, what="the outputs")
        try:
            with ZipFile(path) as file:
                entries = file.infolist()
        except (OSError, BadZipFile) as error:
            kind = kind_of_file(path) or "other bytes"
            fix = "write it with numpy.savez(path, NAME=array)"
            raise FileError(f"{path} is no .npz file, or is cut off", found=kind, fix=fix) from error
        given = (entry.filename.removesuffix(".npy") for entry in entries)
        names = [self.aliases.get(name, name) for name in given]
        if (twice := stated_twice(names)) is not None:
            raise FileError(f"{path} holds an array twice", found=twice, needed="one of each name")
        arrays = {}
        for name, entry in zip(names, entries, strict=True):
            with explained_damage(path):
                array = npz_array(path, entry, verify=True)
                if self._wanted(name, path, array.dtype.name, array.shape):
                    arrays[name] = array.whole()
        return arrays

    def _of_tensors(self, paths: Sequence[Path]) -> Arrays:
        arrays: Arrays = {}
        for path in paths:
            check_file(path, what="the outputs")
            tensor = onnx.TensorProto()
            if path.stat().st_size > self._most:
                found, needed = f"{path.stat().st_size:,} bytes", f"at most {self._most:,} for any output of this set"
                raise FileError(f"{path} is too large", found=found, needed=needed)
            with explained_damage(path):
                tensor.ParseFromString(path.read_bytes())
                name = self._name(tensor.name, path)
                dtype = _DTYPES.get(tensor.data_type, f"type {tensor.data_type}")
                if tensor.data_location == onnx.TensorProto.EXTERNAL:
                    raise FileError(f"{path} has its values in another file", fix="write them into the tensor itself")
                if name in arrays:
                    raise FileError(f"{path}: '{name}' is there twice", needed="one of each name")
                if self._wanted(name, path, dtype, tensor.dims):
                    arrays[name] = onnx.numpy_helper.to_array(tensor)
        return arrays

    @property
    def _most(self) -> int:
        """The most bytes that a tensor may take: a number of one byte may be written as one of ten."""
        return (1 << 16) + 10 * max(array.nbytes for array in (*self.needed.values(), *self.raw.values()))

    def _name(self, name: str, path: Path) -> str:
        """Return which output a tensor is: by its own name where that is one, else by the number of the file."""
        name = self.aliases.get(name, name)
        if name in self.numbered or name in self.raw:
            return name
        number = path.stem.removeprefix("output_")
        if not number.isdecimal() or int(number) >= len(self.numbered):
            found, needed = f"number {number}", f"0 to {len(self.numbered) - 1}"
            raise FileError(f"{path}: the model has no such output", found=found, needed=needed, fix="leave it out")
        return self.numbered[int(number)]


_DTYPES: Final = {kind: name for name, kind in ELEMENT_TYPES.items()}


@contextmanager
def explained_damage(path: Path) -> Iterator[None]:
    """Turn what reading a damaged or truncated file raises into one error that names it."""
    try:
        yield
    except PostprocError:
        raise
    except (
        OSError,
        ValueError,
        TypeError,
        EOFError,
        NotImplementedError,
        BadZipFile,
        zlib.error,
        DecodeError,
    ) as error:
        found = " ".join(str(error).split())[:200]
        raise FileError(f"{path} is damaged or cut off", found=found, fix="write it again") from error
