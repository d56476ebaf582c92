from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_dsmath import cli
from megatron_dsmath.checkpoint import store, weight_reader
from megatron_dsmath.checkpoint.averaging import AveragedWeights, average
from megatron_dsmath.checkpoint.from_huggingface import HuggingFaceFolder, import_folder
from megatron_dsmath.checkpoint.manifest import MANIFEST, read_manifest
from megatron_dsmath.checkpoint.to_huggingface import export
from megatron_dsmath.checkpoint.weights import open_weights
from megatron_dsmath.errors import CheckpointError
from megatron_dsmath.evaluation.generation.open_backend import open_model
from megatron_dsmath.files.progress import TensorProgress
from tests.checkpoint.llama import same_bits, tensors_of, write_llama_with_tokenizer, write_moved_llama
from tests.checkpoint.ranks import logits
from tests.checkpoint.test_to_huggingface import training_run
from tests.support.ranks import run_ranks
from tests.support.runs import run_config

LAYOUTS: dict[str, dict[str, Any]] = {
    "one process": {},
    "tensor 2": {"parallel__tensor": 2},
    "pipeline 2": {"parallel__pipeline": 2},
    "pipeline 2, virtual 2": {"parallel__pipeline": 2, "parallel__virtual_stages": 2},
}
Arrays = dict[str, np.ndarray]


def arrays(folder: Path, dtype: torch.dtype = torch.float32) -> Arrays:
    """The folder's tensors, read by the safetensors library and rounded to `dtype`, as fp32 arrays."""
    return {name: tensor.to(dtype).float().numpy() for name, tensor in tensors_of(folder).items()}


def mean_by_numpy(stored: Sequence[Arrays], weights: Sequence[float] | None = None) -> dict[str, torch.Tensor]:
    """The documented operations, computed by numpy."""
    means = {}
    for name in stored[0]:
        if weights is None:
            total = stored[0][name]
            for other in stored[1:]:
                total = total + other[name]
            mean = total / np.float32(len(stored))
        else:
            factors = (np.array(weights, np.float64) / max(weights)).astype(np.float32)
            total = factors[0] * stored[0][name]
            for factor, other in zip(factors[1:], stored[1:], strict=True):
                total = total + factor * other[name]
            mean = total / np.float32(math.fsum(factors.tolist()))
        assert mean.dtype == np.float32
        means[name] = torch.from_numpy(mean)
    return means


def written(checkpoint: Path) -> dict[str, torch.Tensor]:
    return tensors_of(checkpoint / "weights")


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5], [0.1, 0.0, 0.7]])
def test_the_mean_of_huggingface_folders_equals_numpys(
    folders: list[Path], tmp_path: Path, weights: list[float] | None
) -> None:
    average(folders, tmp_path / "mean", weights=weights)
    assert same_bits(written(tmp_path / "mean"), mean_by_numpy([arrays(folder) for folder in folders], weights))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_mean_of_training_checkpoints_of_any_layout_equals_numpys(
    folders: list[Path], tmp_path: Path, layout: str, precision: str
) -> None:
    runs = [
        training_run(folder, tmp_path / f"run_{index}", precision=precision, **LAYOUTS[layout])
        for index, folder in enumerate(folders[:2])
    ]
    average(runs, tmp_path / "mean")
    dtype = weight_reader.DTYPES[precision]  # type: ignore[index]
    assert same_bits(written(tmp_path / "mean"), mean_by_numpy([arrays(folder, dtype) for folder in folders[:2]]))


@pytest.mark.parametrize("distributed", [True, False])
def test_the_mean_of_data_parallel_checkpoints_equals_numpys(
    folders: list[Path], tmp_path: Path, distributed: bool
) -> None:
    for step, folder in zip((10, 20), folders, strict=False):
        training_run(
            folder,
            tmp_path / "run",
            step,
            data_size=2,
            precision="bf16",
            parallel__distributed_optimizer=distributed,
        )
    average([tmp_path / "run"], tmp_path / "mean", last=2)
    expected = mean_by_numpy([arrays(folder, torch.bfloat16) for folder in folders[:2]])
    assert same_bits(written(tmp_path / "mean"), expected)


def test_kinds_layouts_and_precisions_may_be_mixed(folders: list[Path], tmp_path: Path) -> None:
    """A weights checkpoint in bf16, a training checkpoint in fp32 of two ranks, and a folder."""
    half = write_moved_llama(tmp_path / "bf16", seed=7, dtype=torch.bfloat16)
    import_folder(half, tmp_path / "imported", gate=False)
    run = training_run(folders[0], tmp_path / "run", parallel__tensor=2)
    average([tmp_path / "imported", run, folders[1]], tmp_path / "mean", weights=[3, 1, 2])
    expected = mean_by_numpy([arrays(half), arrays(folders[0]), arrays(folders[1])], [3, 1, 2])
    assert same_bits(written(tmp_path / "mean"), expected)


def test_only_ratios_of_weights_count(folders: list[Path], tmp_path: Path) -> None:
    """Also near the limits of float64, and equal weights are as none."""
    for name, weights in {"none": None, "equal": [0.3] * 3, "large": [1e308] * 3, "small": [1e-300] * 3}.items():
        average(folders, tmp_path / name, weights=weights)
        assert same_bits(written(tmp_path / name), written(tmp_path / "none"))


def test_the_last_n_are_the_newest_steps_in_order(run: Path, folders: list[Path], tmp_path: Path) -> None:
    average([run], tmp_path / "mean", last=2, weights=[1, 3])
    expected = mean_by_numpy([arrays(folders[1]), arrays(folders[2])], [1, 3])
    assert same_bits(written(tmp_path / "mean"), expected)
    parts = read_manifest(tmp_path / "mean").average or []
    assert [(Path(part.path).name, part.step, part.weight) for part in parts] == [
        ("step_10", 10, 1),
        ("step_200", 200, 3),
    ]


def test_a_checkpoint_with_a_damaged_manifest_is_not_among_the_last(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "checkpoints/step_10" / MANIFEST).write_text("{}")
    average([copy], tmp_path / "mean", last=2)
    assert [part.step for part in read_manifest(tmp_path / "mean").average or []] == [9, 200]
    with pytest.raises(CheckpointError, match="step_9, step_200"):
        average([copy], tmp_path / "more", last=3)


def test_the_manifest_lists_the_sources_with_their_hashes(run: Path, folders: list[Path], tmp_path: Path) -> None:
    average([run, folders[0]], tmp_path / "mean", weights=[2, 1])
    manifest = store.verify(tmp_path / "mean")
    assert (manifest.kind, manifest.step, manifest.precision) == ("weights", 0, "fp32")
    newest, folder = manifest.average or []
    assert (newest.path, newest.step, newest.consumed_tokens) == (str(run / "checkpoints/step_200"), 200, 10240)
    assert newest.sha256 == hashlib.sha256((run / "checkpoints/step_200" / MANIFEST).read_bytes()).hexdigest()
    content = b"".join(
        f"{name} {(folders[0] / name).stat().st_size} ".encode() + (folders[0] / name).read_bytes()
        for name in ("config.json", "model.safetensors")
    )
    assert (folder.path, folder.step, folder.sha256) == (str(folders[0]), None, hashlib.sha256(content).hexdigest())
    assert [row["kind"] for row in store.listing(tmp_path / "mean")] == ["weights"]


def test_the_tokenizer_and_its_fingerprint_are_kept(run: Path, folders: list[Path], tmp_path: Path) -> None:
    import_folder(folders[0], tmp_path / "imported", gate=False)
    average([folders[0], run], tmp_path / "mean")
    assert read_manifest(tmp_path / "mean").tokenizer_fingerprint is not None
    assert (
        read_manifest(tmp_path / "mean").tokenizer_fingerprint
        == read_manifest(tmp_path / "imported").tokenizer_fingerprint
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "mean/tokenizer" / name).read_bytes() == (folders[0] / name).read_bytes()


def test_a_mean_is_exported_evaluated_and_loaded_as_any_checkpoint(
    run: Path, folders: list[Path], tmp_path: Path
) -> None:
    """The export's gate compares both decoders; a run can start from the mean."""
    average([run], tmp_path / "mean", last=3)
    report = export(tmp_path / "mean", tmp_path / "out")
    assert report.logits.positions == report.logits.equal_next_tokens > 0
    assert same_bits(tensors_of(tmp_path / "out"), written(tmp_path / "mean"))
    shape = {f"model__{key}": value for key, value in open_weights(run).model.model_dump().items()}
    tokens = [[3, 1, 4, 1, 5, 9, 2, 6]]
    (ours,) = run_ranks(1, logits, run_config(**shape), tmp_path / "mean", tokens)
    (theirs,) = run_ranks(1, logits, run_config(**shape), tmp_path / "out", tokens)
    assert np.array_equal(ours, theirs)
    model = open_model(tmp_path / "mean", "own")  # as `dsmath evaluate --model` opens it
    assert model.tokenizer.fingerprint == read_manifest(tmp_path / "mean").tokenizer_fingerprint
    model.backend.close()


def test_the_card_lists_the_averaged_checkpoints(run: Path, folders: list[Path], tmp_path: Path) -> None:
    average([run, folders[0]], tmp_path / "mean", weights=[3, 1])
    export(tmp_path / "mean", tmp_path / "out", gate=False)
    card = (tmp_path / "out/README.md").read_text()
    assert "| base | the mean of 2 checkpoints, listed below |" in card
    assert "| my_run, step_200 | 200 | 10,240 | 0.7500 |\n| llama_0 | unknown | unknown | 0.2500 |" in card
    assert "| optimizer steps | 0 |" not in card
    assert str(run.parent) not in card  # no paths in the card


def test_the_chat_format_of_fine_tuned_checkpoints_is_kept(folders: list[Path], tmp_path: Path) -> None:
    plan = {"plan": {"chat_template": "{{ messages }}", "end_of_answer": 5}}
    runs = [training_run(folder, tmp_path / f"run_{index}", state=plan) for index, folder in enumerate(folders)]
    average(runs, tmp_path / "mean")
    export(tmp_path / "mean", tmp_path / "out", gate=False)
    export(runs[0], tmp_path / "one", gate=False)
    for name in ("tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    other = {"plan": plan["plan"] | {"end_of_answer": 6}}
    with pytest.raises(CheckpointError, match="different chat formats"):
        average([runs[0], training_run(folders[0], tmp_path / "other", state=other)], tmp_path / "refused")


def test_manifests_without_an_average_have_no_such_key(folders: list[Path], tmp_path: Path) -> None:
    """Their hash is that of the same values before the key existed."""
    import_folder(folders[0], tmp_path / "imported", gate=False)
    content = json.loads((tmp_path / "imported" / MANIFEST).read_text())
    assert "average" not in content
    recorded = content.pop("sha256")
    assert recorded == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def test_a_changed_weight_in_the_manifest_is_detected(folders: list[Path], tmp_path: Path) -> None:
    average(folders, tmp_path / "mean")
    path = tmp_path / "mean" / MANIFEST
    path.write_text(path.read_text().replace('"weight": 1.0', '"weight": 2.0', 1))
    with pytest.raises(CheckpointError, match="differs from what was saved"):
        store.verify(tmp_path / "mean")


def test_a_rerun_after_a_kill_is_complete(folders: list[Path], tmp_path: Path) -> None:
    """The process ends between two tensors."""

    def die(progress: TensorProgress) -> None:
        if progress.tensors == 9:
            os._exit(9)

    process = os.fork()
    if process == 0:
        average(folders, tmp_path / "mean", report=die)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == ["mean.incomplete"]
    average(folders, tmp_path / "mean")
    assert [path.name for path in tmp_path.iterdir()] == ["mean"]
    store.verify(tmp_path / "mean")


def test_the_command_prints_the_sources_with_their_shares(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mean"
    assert cli.main(["checkpoint", "average", str(run), "--last", "2", "--weights", "1", "3", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert f"0.2500  {run}/checkpoints/step_10\n" in shown and f"0.7500  {run}/checkpoints/step_200\n" in shown
    assert cli.main(["checkpoint", "verify", str(out)]) == 0


def test_progress_counts_tensors_and_bytes_of_all_sources(folders: list[Path], tmp_path: Path) -> None:
    seen: list[TensorProgress] = []
    average(folders, tmp_path / "mean", report=seen.append)
    tensors = tensors_of(folders[0])
    total = 3 * sum(tensor.nbytes for tensor in tensors.values())
    assert seen[0] == TensorProgress(0, 0, total)
    assert seen[-1] == TensorProgress(len(tensors), total, total)


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that exist at the same time; views and mapped files need no memory."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._alive: list[weakref.ref[torch.Tensor]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), keywords: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*arguments, **(keywords or {}))
        if function is torch.ops.aten.set_.source_Storage:  # an empty tensor is given the memory of a mapped file
            self._alive = [reference for reference in self._alive if reference() is not result]
        elif not function.is_view:
            results = result if isinstance(result, tuple | list) else [result]
            self._alive += [weakref.ref(item) for item in results if isinstance(item, torch.Tensor) and item.is_cpu]
        tensors = [tensor for tensor in (reference() for reference in self._alive) if tensor is not None]
        self._alive = [weakref.ref(tensor) for tensor in tensors]
        bytes_by_address = {tensor.data_ptr(): tensor.nbytes for tensor in tensors}  # in-place results once
        self.peak_bytes = max(self.peak_bytes, sum(bytes_by_address.values()))
        return result


def peak_bytes(sources: Sequence[weight_reader.WeightReader]) -> int:
    mean = AveragedWeights(sources, [1.0] * len(sources))
    with TensorMemory() as memory:
        for name in mean.shapes:
            deque(mean.row_blocks(name), maxlen=0)
    return memory.peak_bytes


BLOCK_VALUES = 960  # 20 rows of the embedding's 320


def test_memory_holds_a_source_and_the_mean_of_one_block(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not grow with the number of sources or of layers; a tensor has up to 16 blocks."""
    monkeypatch.setattr(weight_reader, "BLOCK_VALUES", BLOCK_VALUES)
    sources = [HuggingFaceFolder(folder) for folder in [*folders, *folders]]
    peaks = {peak_bytes(sources[:count]) for count in (2, 4, 6)}
    for layers in (1, 9):
        deep = write_llama_with_tokenizer(tmp_path / f"layers_{layers}", num_hidden_layers=layers)
        peaks.add(peak_bytes([HuggingFaceFolder(deep)] * 2))
    (peak,) = peaks
    assert 2 * 4 * BLOCK_VALUES <= peak < 2.1 * 4 * BLOCK_VALUES


def test_memory_does_not_grow_with_sharded_sources(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of query, key or value rows needs no whole fused matrix; the indices of rows are int64."""
    monkeypatch.setattr(weight_reader, "BLOCK_VALUES", BLOCK_VALUES)
    steps = [run / f"checkpoints/step_{step}" for step in (9, 10, 200)]
    sources = [open_weights(step) for step in [*steps, *steps]]
    peaks = {peak_bytes(sources[:count]) for count in (2, 4, 6)}
    (peak,) = peaks
    index_bytes = 8 * open_weights(run).model.vocabulary_size
    assert peak <= 3 * 4 * BLOCK_VALUES + 2 * index_bytes
