"""Distributed calibration, as far as one process shows it: refusals, devices, and the sums of tables."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from postproc_export.calibration import Calibrator
from postproc_export.calibration.arrays import Block, Place
from postproc_export.calibration.counting import Divide, Part, coarse_pass, sum_tables
from postproc_export.calibration.ranks import FAILED, all_ranks, device_of
from postproc_export.calibration.table import Table
from postproc_export.calibration.tally import Count, Tally
from postproc_export.errors import UsageError


def test_without_a_process_group_it_is_refused_not_computed_alone() -> None:
    """`distributed=True` never falls back to one process."""
    with pytest.raises(UsageError, match="there is no process group") as raised:
        Calibrator().compute(distributed=True)
    assert "torchrun" in str(raised.value)


def test_a_group_without_distributed_is_refused() -> None:
    """A plain compute() is never collective, so a group for it is a mistake."""
    with pytest.raises(UsageError, match=r"(?s)not asked to use it.*distributed=True"):
        Calibrator().compute(group=object())


@pytest.mark.parametrize(
    ("backends", "device"),
    [
        ("cpu:gloo,cuda:gloo", "cpu"),
        ("cpu:gloo", "cpu"),
        ("cpu:gloo,cuda:nccl", "cpu"),
        ("cuda:nccl", "cuda:3"),
        ("xpu:xccl", "xpu:3"),
    ],
)
def test_tensors_are_where_the_backend_works(backends: str, device: str) -> None:
    """On the CPU with gloo; with nccl alone on the device that the rank has chosen."""
    modules = SimpleNamespace(current_device=lambda: 3)
    package = SimpleNamespace(device=torch.device, get_device_module=lambda name: modules)
    assert device_of(package, backends) == torch.device(device)


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", store, rank=0, world_size=1, timeout=timedelta(seconds=10))
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize(("place", "told"), [("exchange", 0), ("work", 1)])
def test_an_interrupt_is_told_only_where_the_others_listen(
    place: str, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two messages that belong together the others expect something else; the interrupt comes out anyway."""
    meetings: list[int] = []
    meet = torch.distributed.all_gather

    def listen(found: Any, own: torch.Tensor, **options: Any) -> None:
        meetings.append(int(own[0]))
        meet(found, own, **options)

    def interrupt(*arguments: Any, **options: Any) -> NoReturn:
        raise KeyboardInterrupt

    def calibrate() -> None:
        with all_ranks(None) as ranks:
            monkeypatch.setattr(torch.distributed, "all_gather", listen)
            if place == "exchange":
                monkeypatch.setattr(torch.distributed, "broadcast", interrupt)
                ranks.gather(np.arange(3))
            interrupt()

    with pytest.raises(KeyboardInterrupt):
        calibrate()
    assert meetings.count(FAILED) == told


def part(values: np.ndarray, truth: np.ndarray) -> Part:
    """Return some values as one part."""
    return Part([Block(values, truth, Place("a part", "scores", "labels", values.shape), 0)])


def same(one: Table, other: Table) -> bool:
    """Whether two tables are equal to the type."""
    rows = [(getattr(one, name), getattr(other, name)) for name in ("starts", "widths", "normal", "anomalous")]
    return (one.low, one.high) == (other.low, other.high) and all(
        np.array_equal(left, right) and left.dtype == right.dtype for left, right in rows
    )


@given(seed=st.integers(0, 10**6), cut=st.integers(0, 400), bits=st.sampled_from([8, 16]))
def test_tables_of_parts_add_up_to_the_table_of_the_whole(seed: int, cut: int, bits: int) -> None:
    """Sparse and dense sums of divided and of collected bins equal one pass over everything; parts may be empty."""
    rng = np.random.default_rng(seed)
    values, truth = rng.normal(size=400).astype(np.float32).round(2), rng.random(400) < 0.3
    cuts = [slice(0, 400), slice(0, cut), slice(cut, 400), slice(0)]
    first = Count("error", carried=0)
    tallies = [first.run(part(values[each], truth[each])) for each in cuts]
    table = tallies[0].counted().table
    assert same(first.add(tallies[1:]).counted().table, table)
    chosen = np.sort(rng.choice(len(table), 5, replace=False))
    divide, collect = (Divide.of(table, chosen, bits=each) for each in (bits, 0))
    for work in (divide, collect):
        whole, *parts = (work.run(part(values[each], truth[each])) for each in cuts)
        assert same(work.add(parts), whole)
        assert same(sum_tables(parts, low=table.low, high=table.high), whole)
    coarse = coarse_pass(table.low, table.high)
    assert same(coarse.table(*coarse.dense(table)), table)


def test_tallies_without_values_add_up_to_one_without_values() -> None:
    """Nothing plus nothing is nothing."""
    empty = Count("error").add([Tally(), Tally()]).counted()
    assert (len(empty.table), empty.seen, empty.labelled) == (0, 0, None)
