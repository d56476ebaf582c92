"""Compare the training throughput of one CPU core: our step, transformers' Llama, and unmodified megatron-core.

All have the same shape, batch, precision, AdamW and clipping. They alternate in one process; the result is the best
round in CPU seconds, which other work on the machine affects least.
`python benchmarks/training_step.py`, or `make bench`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from megatron_dsmath.config.phases import phase_at
from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.model import decoder
from megatron_dsmath.model.loss import sum_by_group
from megatron_dsmath.parallel import optimizer as gradients
from megatron_dsmath.parallel import transformer
from megatron_dsmath.parallel.pipeline import DeviceBatch, run_microbatches
from megatron_dsmath.parallel.topology import Topology, initialize_topology
from tests.support.runs import run_config

Step = Callable[[], float]


@dataclass(frozen=True)
class Case:
    """A model to train, and the required ratio of throughputs."""

    name: str
    run: RunConfig
    against: str
    at_least: float


def case(name: str, against: str, at_least: float, sequence: int, hidden: int, layers: int, precision: str) -> Case:
    """A LLaMA with heads of 64 channels, trained on two sequences per step."""
    run = run_config(
        precision=precision,
        model={
            "layers": layers,
            "hidden_size": hidden,
            "ffn_hidden_size": hidden * 8 // 3 // 32 * 32,
            "attention_heads": hidden // 64,
            "key_value_heads": hidden // 64,
            "vocabulary_size": 16384,
            "max_position_embeddings": sequence,
            "norm_epsilon": 1e-6,
            "rope_theta": 10000.0,
            "initial_std": 0.02,
            "initial_weights": None,
            "kernels": "torch",
        },
        data__sequence_length=sequence,
        schedule__sequences_per_step=2,
        parallel__microbatch_sequences=2 if sequence <= 1024 else 1,
    )
    return Case(name, run, against, at_least)


CASES = (
    case("34M, 512 tokens, fp32", "transformers", 0.95, 512, 512, 8, "fp32"),
    case("34M, 512 tokens, bf16", "transformers", 0.95, 512, 512, 8, "bf16"),
    case("15M, 4096 tokens, bf16", "stock megatron-core", 1.5, 4096, 256, 8, "bf16"),
)


def ours(run: RunConfig, tokens: torch.Tensor, topology: Topology) -> Step:
    """The training step of this package."""
    model_chunks = decoder.build(run, topology)
    decoder.load_weights(model_chunks, run.model, topology, decoder.WeightsFromSeed(run.model, run.seed))
    reduced = gradients.wrap_data_parallel(run, model_chunks, topology.data_size)
    adamw = gradients.build(run, reduced)
    size = run.parallel.microbatch_sequences
    batches = [
        DeviceBatch(
            rows, torch.ones(size, rows.size(1) - 1), torch.zeros(size, 1, 1).long(), torch.zeros(size).long(), None
        )
        for rows in tokens.split(size)
    ]

    def step() -> float:
        for chunk in reduced:
            chunk.zero_grad_buffer()
        adamw.zero_grad()
        reports = run_microbatches(reduced, batches, lambda nats, batch: sum_by_group(nats, batch, 1), backward=True)
        gradients.apply_gradients(adamw, gradients.gradient_norm(adamw), 1e-4, run.optimizer.weight_decay)
        total = torch.stack(reports).sum((0, 1))
        return float(total[0] / total[1])

    return step


def stock(run: RunConfig, tokens: torch.Tensor, topology: Topology) -> Step:
    """The same step with megatron-core's own layers, from `get_gpt_layer_local_spec`."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    def layers(*_: object) -> object:
        return get_gpt_layer_local_spec(normalization="RMSNorm")

    own_loss, own_init = GPTModel.compute_language_model_loss, GPTModel.__init__

    def with_own_positions(self: GPTModel, **arguments: object) -> None:
        own_init(self, **{**arguments, "position_embedding_type": "rope"})

    with patch.object(transformer, "_layers", layers), patch.object(GPTModel, "__init__", with_own_positions):
        step_with_stock_layers = ours(run, tokens, topology)

    def step() -> float:
        with patch.object(transformer.Decoder, "compute_language_model_loss", own_loss):
            return step_with_stock_layers()

    return step


def transformers_llama(run: RunConfig, tokens: torch.Tensor, topology: Topology) -> Step:
    """A plain training step with transformers' Llama; in bf16 with autocast and fp32 weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = run.model
    config = LlamaConfig(
        vocab_size=model.vocabulary_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=model.layers,
        num_attention_heads=model.attention_heads,
        num_key_value_heads=model.key_value_heads,
        max_position_embeddings=model.max_position_embeddings,
        rms_norm_eps=model.norm_epsilon,
        use_cache=False,
    )
    llama = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    settings = run.optimizer
    adamw = torch.optim.AdamW(
        llama.parameters(), lr=1e-4, betas=(settings.beta1, settings.beta2), weight_decay=settings.weight_decay
    )
    batches = tokens.split(run.parallel.microbatch_sequences)

    def step() -> float:
        adamw.zero_grad()
        total = 0.0
        for rows in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=run.precision == "bf16"):
                logits = llama(rows[:, :-1]).logits
            nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())
            (nats / len(batches)).backward()
            total += float(nats) / len(batches)
        torch.nn.utils.clip_grad_norm_(llama.parameters(), settings.gradient_clip)
        adamw.step()
        return total

    return step


IMPLEMENTATIONS = {"ours": ours, "transformers": transformers_llama, "stock megatron-core": stock}


def main() -> int:
    """Print a table; returns 1 if a ratio is below the required one."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--only", default="")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    print(f"one thread, load average {os.getloadavg()[0]:.2f}, torch {torch.__version__}")
    topology = initialize_topology(CASES[0].run.parallel, seed=1)
    held = True
    for entry in CASES:
        if arguments.only not in entry.name:
            continue
        sequences = entry.run.schedule.sequences_per_step
        generator = torch.Generator().manual_seed(1)
        shape = (sequences, entry.run.data.sequence_length + 1)
        tokens = torch.randint(0, entry.run.model.vocabulary_size, shape, generator=generator)
        names = ["ours", "transformers"] + (["stock megatron-core"] if "stock" in entry.against else [])
        steps = {name: IMPLEMENTATIONS[name](entry.run, tokens, topology) for name in names}
        best = dict.fromkeys(steps, float("inf"))
        for turn in range(arguments.rounds + 1):
            for name, step in steps.items():
                started = time.process_time()
                step()
                if turn:  # the first is a warm-up
                    best[name] = min(best[name], time.process_time() - started)
        rates = {name: phase_at(entry.run, 0).tokens_per_step / seconds for name, seconds in best.items()}
        ratio = rates["ours"] / rates[entry.against]
        held &= ratio >= entry.at_least
        print(
            f"{entry.name}: " + ", ".join(f"{name} {rate:,.0f} tokens per CPU second" for name, rate in rates.items())
        )
        print(f"  ours / {entry.against}: {ratio:.2f} (at least {entry.at_least})  load {os.getloadavg()[0]:.2f}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
