"""Where validation outputs lie: `.npz`, `.npy` files by key, arrays in memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from postproc_export.calibration.counting.arrays import KEYS, Block, Place, as_numpy, check_plain
from postproc_export.calibration.counting.checks import check_counts, checked_shape
from postproc_export.calibration.shards.access import file_signature, readable
from postproc_export.calibration.shards.pairs import pair_blocks
from postproc_export.calibration.shards.streams import npy_array, npz_array, npz_members
from postproc_export.errors import CalibrationError
from postproc_export.stats import LEVELS, Level

NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "pred_score": ("pred_score", "scores"),
    "gt_label": ("gt_label", "labels"),
    "anomaly_map": ("anomaly_map", "maps"),
    "gt_mask": ("gt_mask", "masks"),
}


class Shard(Protocol):
    """A part of the validation outputs that can be read again and again."""

    name: str

    @property
    def files(self) -> list[Path]:
        """The files that are read, or the folder of a store; none where all is in memory."""
        ...

    def signature(self) -> object:
        """Return what changes when the shard is written to."""
        ...

    def size(self, level: Level) -> int | None:
        """Return the values of a level as the headers tell; None where only reading tells."""
        ...

    def blocks(self, level: Level, *, verify: bool) -> Iterator[Block]:
        """Yield the blocks of a level, none where the shard does not have it; `verify` on the first pass."""
        ...


@dataclass(frozen=True, slots=True)
class Pair:
    """The arrays of one level, which fit each other; `truth` is None where there is none."""

    values: Any
    truth: Any
    place: Place


def level_pairs(named: Mapping[str, Any], *, name: str) -> dict[Level, Pair]:
    """Return the pairs of arrays of the levels that are there.

    Raises
    ------
    CalibrationError
        If types or shapes do not fit, or there is neither a score nor a map.
    """
    found: dict[str, str] = {}
    for key, names in NAMES.items():
        there = [alias for alias in names if alias in named]
        if len(there) > 1:
            fix = "leave one of them out"
            raise CalibrationError(f"{name} holds one thing twice", found=", ".join(there), needed="one", fix=fix)
        if there:
            found[key] = there[0]
    pairs: dict[Level, Pair] = {}
    shapes: dict[Level, tuple[int, ...]] = {}
    for level in LEVELS:
        key, truth_key = KEYS[level]
        if key in found:
            values, truth = named[found[key]], named[found[truth_key]] if truth_key in found else None
            place = Place(name, found[key], found.get(truth_key, truth_key), tuple(values.shape))
            shapes[level] = checked_shape(level, values, truth, place=place)
            pairs[level] = Pair(values, truth, place)
    if not pairs:
        raise CalibrationError(
            f"{name} has neither scores nor maps",
            found=", ".join(sorted(named)) or "no array at all",
            needed="pred_score (or scores), anomaly_map (or maps)",
            fix="name the arrays so",
        )
    check_counts(shapes, where=name)
    return pairs


class ArrayShard:
    """Arrays by key; subclasses say where they come from."""

    name: str

    @property
    def files(self) -> list[Path]:
        """The files that are read."""
        return []

    def signature(self) -> object:
        """Return the state of each file; arrays in memory have no cheap sign of a change."""
        return [file_signature(path) for path in self.files]

    def arrays(self, *, verify: bool) -> dict[str, Any]:
        """Return the arrays by their names in the shard."""
        raise NotImplementedError

    def pair(self, level: Level, *, verify: bool) -> Pair | None:
        """Return the arrays of a level, all of the shard checked for types and shapes."""
        return level_pairs(self.arrays(verify=verify), name=self.name).get(level)

    def size(self, level: Level) -> int | None:
        """Return the values of a level."""
        with readable(self.name):
            pair = self.pair(level, verify=False)
            return 0 if pair is None else pair.place.size

    def blocks(self, level: Level, *, verify: bool) -> Iterator[Block]:
        """Yield the blocks of a level after checking types and shapes.

        Raises
        ------
        CalibrationError
            If shapes or types do not fit, or the shard is damaged.
        FileError
            If it is not there, or may not be read.
        """
        with readable(self.name):
            pair = self.pair(level, verify=verify)
            if pair is not None:
                yield from pair_blocks(pair.values, pair.truth, pair.place)


class NpzShard(ArrayShard):
    """A `.npz` file, streamed member by member; nothing in it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    @property
    def files(self) -> list[Path]:
        """The file."""
        return [self.path]

    def arrays(self, *, verify: bool) -> dict[str, Any]:
        """Return the members with known names."""
        known = {name for names in NAMES.values() for name in names}
        members = npz_members(self.path)
        return {name: npz_array(self.path, info, verify=verify) for name, info in members.items() if name in known}


class NpyShard(ArrayShard):
    """`.npy` files that belong together, by key."""

    def __init__(self, paths: Mapping[str, Path], *, name: str) -> None:
        self.paths, self.name = dict(paths), name

    @property
    def files(self) -> list[Path]:
        """The files, in the order of their keys."""
        return list(self.paths.values())

    def arrays(self, *, verify: bool) -> dict[str, Any]:
        """Return the arrays of the files."""
        return {name: npy_array(path) for name, path in self.paths.items()}

    def pair(self, level: Level, *, verify: bool) -> Pair | None:
        """Return the arrays of a level; where it has no ground truth, with the file that would hold it."""
        pair = super().pair(level, verify=verify)
        if pair is None or pair.truth is not None:
            return pair
        return replace(pair, place=replace(pair.place, missing=self._partner(level, pair.place.key)))

    def _partner(self, level: Level, key: str) -> str | None:
        name, truth = self.paths[key].name, NAMES[KEYS[level][1]][NAMES[KEYS[level][0]].index(key)]
        before, found, after = name.rpartition(key)
        return f"{before}{truth}{after}" if found else None


class MemoryShard(ArrayShard):
    """A mapping of arrays, memory maps, torch tensors or paths of `.npy` files."""

    def __init__(self, arrays: Mapping[str, Any], *, name: str = "the mapping") -> None:
        self.name = name
        known = {name for names in NAMES.values() for name in names}
        self.given = {key: value for key, value in arrays.items() if key in known and value is not None}

    @property
    def files(self) -> list[Path]:
        """The files among them."""
        return [Path(value) for value in self.given.values() if isinstance(value, str | Path)]

    def arrays(self, *, verify: bool) -> dict[str, Any]:
        """Return the arrays; what NumPy can slice stays where it is."""
        return {key: _array_of(value, place=f"{self.name}: {key}") for key, value in self.given.items()}


def _array_of(value: Any, *, place: str) -> Any:
    if isinstance(value, str | Path):
        return npy_array(Path(value))
    if hasattr(value, "detach") or not (hasattr(value, "shape") and hasattr(value, "dtype")):
        return as_numpy(value, place=place)
    check_plain(value, place=place)
    return value
