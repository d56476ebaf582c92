"""Compute the training decoder's logits of stored weights, in a separate process for the logit gate.

The process is separate because megatron-core needs initialized process groups and, here, no GPU, and because the caller
of a conversion may be a rank of other process groups.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_dsmath.checkpoint.from_megatron import open_megatron
from megatron_dsmath.checkpoint.logit_gate import rows_in_fp32, stream_weights
from megatron_dsmath.checkpoint.manifest import read_manifest
from megatron_dsmath.checkpoint.weight_reader import WeightReader
from megatron_dsmath.checkpoint.weights import open_checkpoint
from megatron_dsmath.config.sections import ParallelConfig, RunConfig
from megatron_dsmath.errors import EXIT_DONE, DsmathError, show
from megatron_dsmath.model.parameters import Parameter, parameters

_ONE_PROCESS = ParallelConfig(
    tensor=1,
    sequence=False,
    pipeline=1,
    virtual_stages=1,
    stage_layers=None,
    distributed_optimizer=False,
    overlap_communication=False,
    recompute="none",
    microbatch_sequences=1,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the logits of stored weights to a .npy file; returns an exit code."""
    parser = argparse.ArgumentParser(prog="own_logits")
    parser.add_argument("stored", type=Path, help="a checkpoint, or one of Megatron-LM with --model-config")
    parser.add_argument("--model-config", type=Path)
    parser.add_argument("--vocabulary-size", type=int)
    parser.add_argument("ids", type=Path, help="a JSON file with a list of lists of equal length")
    parser.add_argument("logits", type=Path, help="the .npy file to write")
    options = parser.parse_args(arguments)
    try:
        if options.model_config is None:
            weights = open_checkpoint(options.stored, read_manifest(options.stored))
        else:
            weights = open_megatron(options.stored, options.model_config, options.vocabulary_size)
        np.save(options.logits, own_logits(weights, json.loads(options.ids.read_text())).numpy())
    except DsmathError as error:
        return show(error)
    return EXIT_DONE


@torch.no_grad()
def own_logits(weights: WeightReader, ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits [sequence, position, token] in fp32, for stored weights of any precision.

    Memory holds the weights of one module at a time. Raises the errors of reading weights.
    """
    from megatron_dsmath.model import decoder
    from megatron_dsmath.parallel.topology import destroy_topology, initialize_topology

    model = weights.model.model_copy(update={"kernels": "torch"})
    # Data, schedule and optimizer do not affect a forward pass and are not stored with weights.
    sections: dict[str, Any] = {"model": model, "parallel": _ONE_PROCESS, "precision": "fp32"}
    run = RunConfig.model_construct(**sections)
    topology = initialize_topology(run.parallel, seed=0)
    with torch.device("meta"):
        (chunk,) = decoder.build(run, topology)
    table = {parameter.name: parameter for parameter in parameters(model)}
    stream_weights(chunk, lambda name: _in_fp32(weights, table[name]))
    logits: torch.Tensor = chunk(torch.tensor(ids), None, None, labels=None)
    destroy_topology()
    return logits


def _in_fp32(weights: WeightReader, parameter: Parameter) -> torch.Tensor:
    if parameter.join != "alone":
        return weights.read_fused(parameter).float()
    (name,), (shape,) = parameter.hf_names, parameter.hf_shapes
    return rows_in_fp32(shape, lambda part: weights.read(name, shape, part))


if __name__ == "__main__":
    sys.exit(main())
