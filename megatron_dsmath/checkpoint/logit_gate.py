"""The logit gate: a conversion is published only if two programs compute the same from both sides of it.

Ours is the decoder that trains, theirs transformers' Llama; both in fp32 whatever the weights are stored in, on the
CPU, with the weights of one module in memory at a time. docs/decisions/0019 says why, and what the gate cannot see.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import psutil
import torch

from megatron_dsmath.checkpoint.manifest import LogitVerdict
from megatron_dsmath.checkpoint.safetensors_files import SafetensorsFiles
from megatron_dsmath.checkpoint.tokenizer_files import load_from
from megatron_dsmath.checkpoint.weight_reader import WeightReader
from megatron_dsmath.config.sections import ModelConfig
from megatron_dsmath.errors import ConversionError
from megatron_dsmath.model.parameters import Shape

_BLOCK_VALUES = 1 << 24


def stream_weights(model: torch.nn.Module, read: Callable[[str], torch.Tensor]) -> None:
    """Have each module of `model`, built on the meta device, filled before it computes and emptied afterwards.

    `read` gives a parameter by its name in `model`. In memory are the parameters of one module at a time.
    """
    for path, module in model.named_modules():
        for key, _ in list(module.named_parameters(recurse=False)):
            _hold_while_computing(module, key, f"{path}.{key}", read)


def rows_in_fp32(shape: Shape, read: Callable[[slice], torch.Tensor]) -> torch.Tensor:
    """A tensor of `shape` in fp32, put together from the rows that `read` gives: never a second copy of the whole."""
    whole = torch.empty(shape)
    rows = max(1, _BLOCK_VALUES * shape[0] // whole.numel())
    for first in range(0, shape[0], rows):
        block = slice(first, min(first + rows, shape[0]))
        whole[block] = read(block)
    return whole


def _hold_while_computing(module: torch.nn.Module, key: str, name: str, read: Callable[[str], torch.Tensor]) -> None:
    empty = getattr(module, key)

    def fill(*_: object) -> None:
        setattr(module, key, torch.nn.Parameter(read(name), requires_grad=False))

    def drop(*_: object) -> None:
        setattr(module, key, empty)

    module.register_forward_pre_hook(fill)
    module.register_forward_hook(drop)


@torch.no_grad()
def their_logits(folder: Path, config: Path, ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits [sequence, position, word] in fp32 of the safetensors in `folder` under a config.json.

    Names, shapes and the forward are transformers' own; the weights are those of one module at a time.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = LlamaConfig.from_pretrained(config)
    settings._attn_implementation = "eager"  # the whole softmax matrix, as the paper writes it
    with torch.device("meta"):
        model = LlamaForCausalLM(settings)
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(settings)  # holds frequencies, which no file has
    files = SafetensorsFiles(folder)

    def read(name: str) -> torch.Tensor:
        shape = files.tensors[name].shape
        rest = tuple(slice(None) for _ in shape[1:])
        return rows_in_fp32(shape, lambda rows: files.read(name, (rows, *rest)))

    stream_weights(model, read)
    try:
        logits: torch.Tensor = model.eval()(torch.tensor(ids), use_cache=False).logits
    finally:
        files.close()
    return logits


# English, Chinese, LaTeX, code: each fills a row of LENGTH tokens of DeepSeek's tokenizer.
TEXTS = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips "
    "did Natalia sell altogether in April and May? She sold 48/2 = 24 clips in May, so 48 + 24 = 72 altogether.",
    "数学是研究数量、结构、变化以及空间等概念的一门学科。小明有三个苹果,又买了五个,然后吃掉两个,现在他还剩下几个苹果?"
    "答案是六个,因为三加五等于八,八减二等于六。",
    r"\begin{theorem} Let $f\colon [a,b]\to\mathbb{R}$ be continuous. Then $\int_a^b f(x)\,dx = F(b) - F(a)$ for every "
    r"$F$ with $F' = f$, and $\sum_{n=1}^{\infty} \frac{1}{n^2} = \frac{\pi^2}{6}$. \end{theorem}",
    "def greatest_common_divisor(a: int, b: int) -> int:\n    while b:\n        a, b = b, a % b\n    return a\n\n\n"
    "print([greatest_common_divisor(n, 12) for n in range(1, 100)])\n",
)
LENGTH = 32

# Of the standard deviation of their logits. Both sides add the same products in fp32 in another order, which is 3e-6 of
# it for 3 narrow layers and for 30 of the 7B shape; the faintest mistake planted by the tests is 0.44 of it.
TOLERANCE = 1e-3

NOT_ASKED = LogitVerdict(skipped="--no-gate")

_PROCESS_BYTES = 1_500_000_000  # of a process that has loaded torch and megatron-core, and its activations
_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "DSMATH_RENDEZVOUS")


def compare(weights: WeightReader, ours: Sequence[object], folder: Path, config: Path) -> LogitVerdict:
    """Compare the logits of stored weights with those that transformers computes of the safetensors in `folder`.

    `weights` are either's, for their shape and tokenizer; `ours` names the stored weights to `own_logits`. Raises
    ConversionError when a logit differs by more than the tolerance, or our forward fails. Without transformers or
    memory the verdict says so instead.
    """
    try:
        release = version("transformers")
    except PackageNotFoundError:
        return LogitVerdict(skipped="transformers is not installed (pip install 'megatron_dsmath[hf]')")
    ids = fixed_ids(weights)
    needed, free = needed_bytes(weights.model, sum(map(len, ids))), psutil.virtual_memory().available
    if needed > free:
        return LogitVerdict(skipped=f"not enough memory: needs {needed / 1e9:.1f} GB, free are {free / 1e9:.1f} GB")
    pass

    theirs = their_logits(folder, config, ids)
    verdict = judge(run_own_logits(ours, ids), theirs, release)
    if not verdict.largest_difference <= verdict.tolerance:
        raise ConversionError(
            "the model does not compute what transformers computes",
            where=folder,
            found=f"logits {verdict.largest_difference:.2g} apart; the next token is the same at "
            f"{verdict.equal_next_tokens} of {verdict.positions} positions",
            expected=f"at most {verdict.tolerance:.1g}, {TOLERANCE:g} of the standard deviation of the logits",
            fix="check config.json (rope_theta, rms_norm_eps) against the model's origin, and report this; --no-gate "
            "writes the output all the same and records that",
        )
    return verdict


def fixed_ids(weights: WeightReader) -> list[list[int]]:
    """What both sides read: the texts as far as there is a tokenizer, and ids spread evenly over the vocabulary.

    Rows of one length, a short text repeated; both sides are causal, so nothing is padded.
    """
    length = min(LENGTH, weights.model.max_position_embeddings)
    tokenizer = load_from(weights.tokenizer_files)
    rows = [] if tokenizer is None else [ids for ids in tokenizer.encode_batch(TEXTS) if ids]
    vocabulary = weights.model.vocabulary_size
    rows.append([place * vocabulary // length for place in range(length)])
    return [(ids * length)[:length] for ids in rows]


def judge(ours: torch.Tensor, theirs: torch.Tensor, release: str) -> LogitVerdict:
    """What two tensors of logits [sequence, position, word] say of each other; NaN is as far apart as can be."""
    largest = float((ours - theirs).abs().max().nan_to_num(nan=float("inf")))
    return LogitVerdict(
        transformers=release,
        positions=theirs[..., 0].numel(),
        equal_next_tokens=int((ours.argmax(-1) == theirs.argmax(-1)).sum()),
        largest_difference=min(largest, sys.float_info.max),
        tolerance=TOLERANCE * float(theirs.std()),
    )


def needed_bytes(model: ModelConfig, positions: int) -> int:
    """Memory of one side: a process, its largest module's weights in fp32, and three copies of the logits."""
    largest = model.vocabulary_size * model.hidden_size
    fused = 4 * model.ffn_hidden_size * model.hidden_size  # the gate and the up matrix, and both as one
    return 4 * (max(largest, fused) + 3 * positions * model.vocabulary_size) + _PROCESS_BYTES


def run_own_logits(ours: Sequence[object], ids: list[list[int]]) -> torch.Tensor:
    """Logits of our decoder, computed by a process of its own on the CPU. Raises ConversionError when it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in _RANK_VARIABLES}
    with tempfile.TemporaryDirectory(prefix="dsmath-logits-") as folder:
        request, answer = Path(folder) / "ids.json", Path(folder) / "logits.npy"
        request.write_text(json.dumps(ids), encoding="utf-8")
        program = [sys.executable, "-m", "megatron_dsmath.checkpoint.own_logits"]
        done = subprocess.run(
            [*program, *map(str, [*ours, request, answer])],
            env=environment | {"CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ConversionError(
                "the decoder cannot compute logits of these weights",
                where=ours[0],
                found=done.stderr.strip()[-2000:] or f"its process ended with {done.returncode}",
                fix="see what it said; --no-gate writes the output all the same and records that",
            )
        return torch.from_numpy(np.load(answer))
