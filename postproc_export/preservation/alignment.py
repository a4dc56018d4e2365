"""Line up two lists by keys: what is gone, what was added, what stands in both, and whether the order is the same."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import TypeVar

from postproc_export.preservation.change import Change

Item = TypeVar("Item")
Key = tuple[Hashable, int]


def keyed(items: Iterable[Item], key: Callable[[Item], Hashable]) -> dict[Key, Item]:
    """Return the items by key, in order; items of one key are numbered."""
    counts: Counter[Hashable] = Counter()
    found: dict[Key, Item] = {}
    for item in items:
        name = key(item)
        found[name, counts[name]] = item
        counts[name] += 1
    return found


def aligned(raw: Mapping[Key, Item], attached: Mapping[Key, Item]) -> Iterator[tuple[Item, Item]]:
    """Yield what stands in both, in the raw order."""
    return ((item, attached[key]) for key, item in raw.items() if key in attached)


def moved(
    raw: Mapping[Key, Item], attached: Mapping[Key, Item], title: Callable[[Item], str], order: str | None
) -> Iterator[Change]:
    """Yield what is gone and what was added; with a text for it, the order of the rest, too."""
    yield from (Change(title(item), "there", None) for key, item in raw.items() if key not in attached)
    yield from (Change(title(item), None, "there") for key, item in attached.items() if key not in raw)
    before = [key for key in raw if key in attached]
    after = [key for key in attached if key in raw]
    if order is not None and before != after:
        first = next(index for index, key in enumerate(before) if key != after[index])
        yield Change(f"{order} at position {first}", title(raw[before[first]]), title(attached[after[first]]))
