"""The logit gate: a conversion is published only if our decoder and transformers' Llama compute the same logits.

Both compute in fp32 on the CPU, for any stored type, with the weights of one module in memory at a time.
docs/decisions/0019 gives the reasons and the errors that the gate cannot detect.
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

LENGTH = 32
# English, Chinese, LaTeX and code, each at least LENGTH tokens of DeepSeek's tokenizer.
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
# Relative to the standard deviation of transformers' logits. Both add the same products in fp32 in different orders,
# which gives 3e-6 for 3 narrow layers and for 30 layers of the 7B shape; the smallest error planted by the tests gives
# 0.44.
TOLERANCE = 1e-3
NOT_ASKED = LogitVerdict(skipped="--no-gate")
_BLOCK_VALUES = 1 << 24
_PROCESS_BYTES = 1_500_000_000  # a process with torch and megatron-core, and its activations
_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "DSMATH_RENDEZVOUS")


def compare(weights: WeightReader, own_arguments: Sequence[object], folder: Path, config: Path) -> LogitVerdict:
    """Compare our logits of stored weights with transformers' logits of the safetensors files in `folder`.

    `weights` give the shape and the tokenizer; `own_arguments` are the command-line arguments of `own_logits` for the
    stored weights. Raises ConversionError if a logit differs by more than the tolerance or our forward pass fails.
    Without transformers or enough memory nothing is compared, and the verdict has the reason.
    """
    try:
        release = version("transformers")
    except PackageNotFoundError:
        return LogitVerdict(skipped="transformers is not installed (pip install 'megatron_dsmath[hf]')")
    ids = fixed_ids(weights)
    needed, free = needed_bytes(weights.model, sum(map(len, ids))), psutil.virtual_memory().available
    if needed > free:
        return LogitVerdict(skipped=f"not enough memory: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")
    reference = transformers_logits(folder, config, ids)
    verdict = compare_logits(run_own_logits(own_arguments, ids), reference, release)
    if not verdict.largest_difference <= verdict.tolerance:
        raise ConversionError(
            "the model computes other logits than transformers",
            where=folder,
            found=f"a largest difference of {verdict.largest_difference:.2g}; the next token is the same at "
            f"{verdict.equal_next_tokens} of {verdict.positions} positions",
            expected=f"at most {verdict.tolerance:.1g}, which is {TOLERANCE:g} of the standard deviation of the logits",
            fix="compare config.json (rope_theta, rms_norm_eps) with the original model's, and report this; --no-gate "
            "writes the output without the comparison and records that",
        )
    return verdict


def fixed_ids(weights: WeightReader) -> list[list[int]]:
    """The input of both models: the texts if there is a tokenizer, and ids spread evenly over the vocabulary.

    All rows have one length; a short text is repeated instead of padded.
    """
    length = min(LENGTH, weights.model.max_position_embeddings)
    tokenizer = load_from(weights.tokenizer_files)
    rows = [] if tokenizer is None else [ids for ids in tokenizer.encode_batch(TEXTS) if ids]
    vocabulary = weights.model.vocabulary_size
    rows.append([index * vocabulary // length for index in range(length)])
    return [(ids * length)[:length] for ids in rows]


def compare_logits(own: torch.Tensor, reference: torch.Tensor, release: str) -> LogitVerdict:
    """Compare two tensors of logits [sequence, position, token]; NaN counts as the largest possible difference."""
    largest = float((own - reference).abs().max().nan_to_num(nan=float("inf")))
    return LogitVerdict(
        transformers=release,
        positions=reference[..., 0].numel(),
        equal_next_tokens=int((own.argmax(-1) == reference.argmax(-1)).sum()),
        largest_difference=min(largest, sys.float_info.max),
        tolerance=TOLERANCE * float(reference.std()),
    )


def needed_bytes(model: ModelConfig, positions: int) -> int:
    """Memory of one forward pass: a process, its largest module in fp32, and three copies of the logits."""
    largest = model.vocabulary_size * model.hidden_size
    fused = 4 * model.ffn_hidden_size * model.hidden_size  # gate and up, separate and fused
    return 4 * (max(largest, fused) + 3 * positions * model.vocabulary_size) + _PROCESS_BYTES


def run_own_logits(own_arguments: Sequence[object], ids: list[list[int]]) -> torch.Tensor:
    """Logits of our decoder, computed on the CPU by a separate process. Raises ConversionError if it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in _RANK_VARIABLES}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory(prefix="dsmath-logits-") as folder:
        request, answer = Path(folder) / "ids.json", Path(folder) / "logits.npy"
        request.write_text(json.dumps(ids), encoding="utf-8")
        command = [sys.executable, "-m", "megatron_dsmath.checkpoint.own_logits"]
        command += map(str, [*own_arguments, request, answer])
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ConversionError(
                "our decoder cannot compute logits of these weights",
                where=own_arguments[0],
                found=done.stderr.strip()[-2000:] or f"exit code {done.returncode}",
                fix="see the message above; --no-gate writes the output without the comparison and records that",
            )
        return torch.from_numpy(np.load(answer))


@torch.no_grad()
def transformers_logits(folder: Path, config: Path, ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits [sequence, position, token] in fp32 that transformers computes from the safetensors files in `folder`.

    Names, shapes and the forward pass are transformers'; `config` is the model's config.json.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = LlamaConfig.from_pretrained(config)
    settings._attn_implementation = "eager"  # the plain softmax formula
    with torch.device("meta"):
        model = LlamaForCausalLM(settings)
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(settings)  # its frequencies are in no file
    files = SafetensorsFiles(folder)

    def read(name: str) -> torch.Tensor:
        return rows_in_fp32(files.tensors[name].shape, lambda part: files.read(name, part))

    stream_weights(model, read)
    try:
        logits: torch.Tensor = model.eval()(torch.tensor(ids), use_cache=False).logits
    finally:
        files.close()
    return logits


def stream_weights(model: torch.nn.Module, read: Callable[[str], torch.Tensor]) -> None:
    """Add hooks to `model`, built on the meta device, that load each module's parameters only while it computes.

    `read` returns a parameter by its name in `model`. Memory holds the parameters of one module at a time.
    """
    for path, module in model.named_modules():
        for key, _ in list(module.named_parameters(recurse=False)):
            _load_while_computing(module, key, f"{path}.{key}", read)


def _load_while_computing(module: torch.nn.Module, key: str, name: str, read: Callable[[str], torch.Tensor]) -> None:
    empty = getattr(module, key)

    def fill(*_: object) -> None:
        setattr(module, key, torch.nn.Parameter(read(name), requires_grad=False))

    def drop(*_: object) -> None:
        setattr(module, key, empty)

    module.register_forward_pre_hook(fill)
    module.register_forward_hook(drop)


def rows_in_fp32(shape: Shape, read: Callable[[tuple[slice, ...]], torch.Tensor]) -> torch.Tensor:
    """A tensor of `shape` in fp32, read in blocks of rows so that there is never a second copy of the whole."""
    whole = torch.empty(shape)
    rows = max(1, _BLOCK_VALUES * shape[0] // whole.numel())
    for first in range(0, shape[0], rows):
        block = slice(first, min(first + rows, shape[0]))
        whole[block] = read((block, *(slice(None) for _ in shape[1:])))
    return whole
