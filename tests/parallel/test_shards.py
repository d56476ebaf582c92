from __future__ import annotations

import pickle
import shutil
import sys
from collections.abc import Callable
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.parallel import shards
from megatron_dsmath.parallel.collectives import barrier
from megatron_dsmath.parallel.state_parts import SHARDING
from megatron_dsmath.parallel.transformer import unwrap_decoder
from tests.support import training
from tests.support.ranks import run_ranks
from tests.support.runs import run_config
from tests.support.training import Figures, deviations, load_and_train, train_and_save

STEPS = (2, 4)  # saved after, ends after
# For losses in another layout: the same numbers in another order (tests/parallel/test_layouts.py).
FP32_TOLERANCE, BF16_TOLERANCE = 1e-5, 1e-2


class Layout(NamedTuple):
    ranks: int
    overrides: dict[str, Any]


LAYOUTS = {
    "one process": Layout(1, {}),
    "DP2": Layout(2, {}),
    "DP2, optimizer not distributed": Layout(2, {"parallel__distributed_optimizer": False}),
    "DP2, overlapped": Layout(2, {"parallel__overlap_communication": True}),
    "TP2 SP": Layout(2, {"parallel__tensor": 2, "parallel__sequence": True}),
    "PP2, virtual": Layout(2, {"parallel__pipeline": 2, "parallel__virtual_stages": 2}),
    "bf16, DP2": Layout(2, {"precision": "bf16"}),
    "bf16, optimizer not distributed": Layout(1, {"precision": "bf16", "parallel__distributed_optimizer": False}),
}
ONLY_RESHARDED = {
    "PP2, uneven": Layout(2, {"parallel__pipeline": 2, "parallel__stage_layers": [1, 3]}),
    "TP2 PP2": Layout(4, {"parallel__tensor": 2, "parallel__pipeline": 2}),
    "bf16, TP2 SP": Layout(2, {"precision": "bf16", "parallel__tensor": 2, "parallel__sequence": True}),
}


class Saved(NamedTuple):
    folder: Path
    later: list[Figures]  # of the steps after the save, without interruption


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """The checkpoint of a layout, trained once for all tests."""
    made: dict[str, Saved] = {}

    def of(name: str) -> Saved:
        if name not in made:
            folder = tmp_path_factory.mktemp("saved") / "shards"
            made[name] = Saved(folder, ranks(name, train_and_save, None, folder, STEPS)[0])
        return made[name]

    return of


def ranks(name: str, function: Callable[..., Any], *arguments: Any, **overrides: Any) -> list[Any]:
    layout = (LAYOUTS | ONLY_RESHARDED)[name]
    return run_ranks(layout.ranks, function, run_config(**{**layout.overrides, **overrides}), *arguments)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor in the folder, read by torch only."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    tensors: dict[str, Any] = {}
    reader = FileSystemReader(folder)
    _load_state_dict(tensors, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_layout_resumes_bit_for_bit(name: str, saved: Callable[[str], Saved], tmp_path: Path) -> None:
    folder, later = saved(name)
    for resumed in ranks(name, load_and_train, folder, tmp_path / "again", STEPS):
        assert resumed == later


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("one process", "TP2 SP"),
        ("TP2 SP", "PP2, virtual"),
        ("PP2, virtual", "DP2"),
        ("DP2", "TP2 PP2"),
        ("one process", "PP2, uneven"),
        ("bf16, DP2", "bf16, TP2 SP"),
    ],
)
def test_another_layout_reads_the_same_state_and_resumes(
    before: str, after: str, saved: Callable[[str], Saved], tmp_path: Path
) -> None:
    folder, later = saved(before)
    resumed = ranks(after, load_and_train, folder, tmp_path / "again", STEPS)[0]
    found = deviations(resumed, later)
    print(f"{before} -> {after}: {found}")
    assert found.loss < (BF16_TOLERANCE if "bf16" in after else FP32_TOLERANCE)
    ours, theirs = tensors_of(tmp_path / "again"), tensors_of(folder)
    # 6 tensors per layer, each stacked over the layers, and 3 others: weights, masters, and two moments.
    assert len(theirs) == 4 * (6 + 3)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_a_checkpoint_has_fp32_masters_and_moments_in_any_precision(saved: Callable[[str], Saved]) -> None:
    for name, tensor in tensors_of(saved("bf16, DP2").folder).items():
        assert tensor.dtype == (torch.float32 if name.startswith("optimizer.state.") else torch.bfloat16), name


def save_both_ways(run: RunConfig, folder: Path) -> None:
    """Our files, and those of megatron-core's `fully_reshardable` format with torch's writer."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.strategies import torch as strategies
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

    class Written(strategies.TorchDistSaveShardedStrategy):  # without megatron-core's processes
        def save(self, sharded_state_dict: Any, checkpoint_dir: Path) -> None:
            tensors, _, _ = strategies._replace_state_dict_keys_with_sharded_keys(sharded_state_dict, True)
            planner = strategies.MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
            state = strategies.mcore_to_pyt_state_dict(tensors, False)
            save_tensors(state, storage_writer=FileSystemWriter(checkpoint_dir), planner=planner)

    opened = training.start(run)
    opened.step(0)
    training.save(opened, folder / "ours")
    weights = {"piece0": unwrap_decoder(opened.model_chunks[0]).sharded_state_dict(metadata=SHARDING)}
    optimizer = opened.updater.sharded_state_dict(weights, is_loading=False, metadata=SHARDING)
    (folder / "theirs").mkdir(exist_ok=True)
    barrier()
    strategy = Written("torch_dist", 1, keep_only_main_replica=True)
    dist_checkpointing.save({**weights, "optimizer": optimizer}, str(folder / "theirs"), strategy)


@pytest.mark.parametrize("name", ["DP2", "bf16, DP2", "TP2 SP"])
def test_the_tensors_are_those_that_megatron_core_gathers_and_saves(name: str, tmp_path: Path) -> None:
    ranks(name, save_both_ways, tmp_path)
    ours, theirs = tensors_of(tmp_path / "ours"), tensors_of(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []


def collectives_of_a_copy(run: RunConfig) -> list[str]:
    """The collectives that are called while a state is copied for the second time."""
    opened = training.start(run)
    opened.step(0)
    serializer = shards.ShardSerializer(opened.model_chunks, opened.updater, opened.topology)
    memory = mmap(-1, serializer.size_bytes)
    serializer.prepare(memory)
    serializer.serialize(memory)
    calls: list[str] = []
    for name in ("all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "broadcast", "gather"):
        setattr(torch.distributed, name, lambda *_, name=name, **__: calls.append(name))
    serializer.serialize(memory)
    return calls


def test_ranks_copy_their_parts_without_communication() -> None:
    assert ranks("DP2", collectives_of_a_copy) == [[], []]


def steps_and_betas(run: RunConfig, folder: Path) -> list[tuple[int, tuple[float, float], float]]:
    opened = training.start(run)
    shards.load(folder, opened.model_chunks, opened.updater)
    return [(group["step"], group["betas"], group["eps"]) for group in opened.updater.param_groups]


@pytest.mark.parametrize("name", ["one process", "DP2, optimizer not distributed", "bf16, optimizer not distributed"])
def test_the_step_comes_from_the_checkpoint_and_betas_and_epsilon_from_the_run(
    name: str, saved: Callable[[str], Saved]
) -> None:
    numbers = {"optimizer__beta2": 0.999, "optimizer__epsilon": 1e-6}
    for groups in ranks(name, steps_and_betas, saved(name).folder, **numbers):
        assert groups == [(STEPS[0], (0.9, 0.999), 1e-6)] * 2


def events_of_saving_and_loading(run: RunConfig, folder: Path) -> set[str]:
    """The audit events of the interpreter while a checkpoint is written and read."""
    opened = training.start(run)
    opened.step(0)
    events: set[str] = set()
    sys.addaudithook(lambda event, _: events.add(event))
    training.save(opened, folder)
    shards.load(folder, opened.model_chunks, opened.updater)
    return events


def test_no_process_is_started_to_save_or_load(tmp_path: Path) -> None:
    for events in ranks("DP2", events_of_saving_and_loading, tmp_path / "shards"):
        assert "open" in events  # the hook works
        assert events & {"os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.system", "subprocess.Popen"} == set()


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.evidence,)


@pytest.mark.fault(
    "S12",
    injected="a checkpoint's `.metadata` that runs a program",
    where="resuming a run",
    holds="refused, and the program does not run",
)
def test_metadata_that_runs_code_is_refused_before_it_is_loaded(saved: Callable[[str], Saved], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved("one process").folder, tmp_path / "spoiled"))
    (folder / ".metadata").write_bytes(pickle.dumps(Hostile(tmp_path / "evidence")))
    with pytest.raises(RuntimeError, match="could run a program"):
        ranks("one process", load_and_train, folder, tmp_path / "again", STEPS)
    assert not (tmp_path / "evidence").exists()
