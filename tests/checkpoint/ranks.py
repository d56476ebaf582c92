"""Functions for ranks: build the decoder from stored weights, and save it or compute logits."""

from __future__ import annotations

import multiprocessing
import queue
from pathlib import Path
from typing import Any

import torch

from megatron_dsmath.checkpoint.weights import open_weights
from megatron_dsmath.config.sections import RunConfig


def logits(run: RunConfig, weights: Path, tokens: list[list[int]]) -> Any:
    """This rank's share of the logits [batch, sequence, tokens], in numpy, which outlives the process."""
    (chunk,), _ = _load(run, weights)
    with torch.no_grad():
        return chunk(torch.tensor(tokens), None, None, labels=None).numpy()


def gate_logits(arguments: list[str], ids: list[list[int]], plant: str | None) -> Any:
    """Our logits for the gate, as `own_logits` computes them; `plant` fuses the decoder's matrices wrongly."""
    import json
    import tempfile

    import numpy as np

    from megatron_dsmath.checkpoint import own_logits
    from megatron_dsmath.model.parameters import Parameter

    fuse = Parameter.fuse
    faulty = {"keys before queries": "grouped", "up above gate": "stacked", None: None}[plant]

    def swapped(self: Parameter, tensors: list[torch.Tensor], groups: int) -> torch.Tensor:
        first, *rest = tensors
        return fuse(self, [rest[0], first, *rest[1:]] if self.join == faulty else tensors, groups)

    Parameter.fuse = swapped  # type: ignore[method-assign, assignment] # this process is forked for one call
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "ids.json", Path(folder) / "logits.npy"
        request.write_text(json.dumps(ids))
        assert own_logits.main([*arguments, str(request), str(answer)]) == 0
        return np.load(answer)


def save_training_shards(run: RunConfig, weights: Path, folder: Path) -> None:
    """Weights and optimizer state as a training run saves them."""
    from megatron_dsmath.parallel import optimizer
    from tests.support.training import save_shards

    model_chunks, topology = _load(run, weights)
    reduced = optimizer.wrap_data_parallel(run, model_chunks, topology.data_size)
    updater = optimizer.build(run, reduced)
    norm = optimizer.gradient_norm(updater)
    optimizer.apply_gradients(updater, norm, learning_rate=0.0, weight_decay=0.0)  # the first step creates the moments
    save_shards(folder, reduced, updater, topology)


def save_as_megatron(run: RunConfig, weights: Path, folder: Path, rename: dict[str, str], per_layer: bool) -> None:
    """The model as Megatron-LM saves it: megatron-core's own writer, no optimizer, some keys renamed."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined] # its writer forks
    filesystem_async._results_queue = queue.Queue()  # else a manager process would outlive this one
    state: dict[str, Any] = {}
    for index, chunk in enumerate(_load(run, weights)[0]):
        state[f"model{index}"] = chunk.sharded_state_dict(metadata={"non_homogeneous_layers": per_layer})
        for entry in state[f"model{index}"].values():
            if isinstance(entry, ShardedTensor | ShardedTensorFactory):
                for ours, theirs in rename.items():
                    entry.key = entry.key.replace(ours, theirs)
    folder.mkdir(parents=True, exist_ok=True)
    dist_checkpointing.save(state, str(folder))


def _load(run: RunConfig, weights: Path) -> tuple[list[Any], Any]:
    from megatron_dsmath.model import decoder
    from megatron_dsmath.parallel.topology import initialize_topology

    topology = initialize_topology(run.parallel, run.seed)
    model_chunks = decoder.build(run, topology)
    source = open_weights(weights)
    decoder.load_weights(model_chunks, run.model, topology, source)
    source.close()
    return model_chunks, topology
