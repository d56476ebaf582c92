from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch

from megatron_dsmath.checkpoint import checkpoint_weights, from_huggingface, logit_gate, to_huggingface
from megatron_dsmath.checkpoint.from_huggingface import HuggingFaceFolder, import_folder
from megatron_dsmath.checkpoint.from_megatron import convert
from megatron_dsmath.checkpoint.logit_gate import transformers_logits
from megatron_dsmath.checkpoint.manifest import read_manifest
from megatron_dsmath.checkpoint.to_huggingface import export
from megatron_dsmath.config.sections import ModelConfig
from megatron_dsmath.errors import ConversionError
from megatron_dsmath.model.parameters import Parameter
from tests.checkpoint import ranks
from tests.checkpoint.llama import write_llama_with_tokenizer
from tests.checkpoint.test_to_huggingface import training_run
from tests.support.ranks import run_ranks
from tests.support.runs import run_config

IN_A_PROCESS_OF_ITS_OWN = logit_gate.run_own_logits
IDS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]]
# As many key-value heads as query heads, so that square matrices can be exchanged by mistake.
SQUARE = {"num_key_value_heads": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama_with_tokenizer(tmp_path_factory.mktemp("hf") / "llama", dtype=torch.bfloat16, **SQUARE)


@pytest.fixture(scope="module")
def checkpoint(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoint") / "imported"
    import_folder(folder, out, gate=False)
    return out


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our logits in a process forked from one with megatron-core loaded: 0.3 s instead of 5."""
    monkeypatch.setattr(logit_gate, "run_own_logits", run_forked)


def run_forked(own_arguments: Sequence[object], ids: list[list[int]], plant: str | None = None) -> torch.Tensor:
    return torch.from_numpy(run_ranks(1, ranks.gate_logits, list(map(str, own_arguments)), ids, plant)[0])


def test_the_manifest_of_an_import_contains_the_comparison(folder: Path, tmp_path: Path) -> None:
    report = import_folder(folder, tmp_path / "checkpoint")
    verdict = read_manifest(tmp_path / "checkpoint").logit_gate
    assert verdict == report.manifest.logit_gate and verdict.skipped is None
    assert verdict.positions == verdict.equal_next_tokens == 5 * logit_gate.LENGTH
    assert 0 < verdict.largest_difference < verdict.tolerance < 0.01
    assert "same next token at 160 of 160 positions" in str(report)


def test_the_card_of_an_export_contains_the_comparison(checkpoint: Path, tmp_path: Path) -> None:
    report = export(checkpoint, tmp_path / "out")
    assert report.logits.equal_next_tokens == report.logits.positions == 160
    assert f"| logits | {report.logits} |" in (tmp_path / "out/README.md").read_text()


def test_transformers_logits_are_those_of_the_model_that_transformers_loads(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        whole = model(torch.tensor(IDS)).logits
    # The same program with other memory addresses, which change the order of some fp32 sums.
    torch.testing.assert_close(transformers_logits(folder, folder / "config.json", IDS), whole, atol=2e-6, rtol=0)


class Fault(NamedTuple):
    """An error of a converter: in the tensors that it writes, or in the configuration."""

    swap: tuple[str, str] | None = None
    rows_of: str | None = None
    model: tuple[str, float] | None = None

    def applied(self, model: ModelConfig) -> ModelConfig:
        return model if self.model is None else model.model_copy(update=dict([self.model]))


LAYER = "model.layers.1"
FAULTS = {
    "query for key": Fault(swap=(f"{LAYER}.self_attn.q_proj.weight", f"{LAYER}.self_attn.k_proj.weight")),
    "gate for up": Fault(swap=(f"{LAYER}.mlp.gate_proj.weight", f"{LAYER}.mlp.up_proj.weight")),
    "a norm for the other": Fault(swap=(f"{LAYER}.input_layernorm.weight", f"{LAYER}.post_attention_layernorm.weight")),
    "two rows of the output layer": Fault(rows_of="lm_head.weight"),
    "two rows of the embedding": Fault(rows_of="model.embed_tokens.weight"),
    "another RoPE theta": Fault(model=("rope_theta", 10000.0)),
    "another epsilon": Fault(model=("norm_epsilon", 1e-3)),
}


def faulty(read: Callable[[str], Iterator[torch.Tensor]], fault: Fault) -> Callable[[str], torch.Tensor]:
    swapped = {} if fault.swap is None else dict([fault.swap, fault.swap[::-1]])

    def faulty_read(name: str) -> torch.Tensor:
        tensor = torch.cat([*read(swapped.get(name, name))])
        if name == fault.rows_of:
            tensor[[0, 200]] = tensor[[200, 0]]  # 0 is the first of the ids spread over the vocabulary
        return tensor

    return faulty_read


def plant(monkeypatch: pytest.MonkeyPatch, module: Any, fault: Fault) -> None:
    """Make `module` write its tensors with the error."""
    write = module.write_safetensors
    monkeypatch.setattr(
        module, "write_safetensors", lambda folder, tensors, read: write(folder, tensors, faulty(read, fault))
    )


@pytest.mark.parametrize("name", FAULTS)
def test_an_import_with_other_logits_is_not_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plant(monkeypatch, checkpoint_weights, FAULTS[name])
    model = FAULTS[name].applied(HuggingFaceFolder(folder).model)
    monkeypatch.setattr(from_huggingface, "model_from", lambda *_: model)
    refused(lambda: import_folder(folder, tmp_path / "checkpoint"), tmp_path)


@pytest.mark.parametrize("name", FAULTS)
def test_an_export_with_other_logits_is_not_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plant(monkeypatch, to_huggingface, FAULTS[name])
    config_from = to_huggingface.config_from
    monkeypatch.setattr(
        to_huggingface,
        "config_from",
        lambda model, *rest: config_from(FAULTS[name].applied(model), *rest),
    )
    refused(lambda: export(checkpoint, tmp_path / "out"), tmp_path)


@pytest.mark.parametrize("fault", ["keys before queries", "up above gate"])
def test_an_import_detects_a_wrong_parameter_table(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The decoder's matrices are fused wrongly: the files are correct and training is not."""
    monkeypatch.setattr(logit_gate, "run_own_logits", lambda own_arguments, ids: run_forked(own_arguments, ids, fault))
    refused(lambda: import_folder(folder, tmp_path / "checkpoint"), tmp_path)


@pytest.fixture(scope="module")
def run_directory(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_run(folder, tmp_path_factory.mktemp("run"), parallel__tensor=2, precision="bf16")


def test_the_export_of_a_run_has_the_logits_of_its_shards(run_directory: Path, tmp_path: Path) -> None:
    assert export(run_directory, tmp_path / "out").logits.equal_next_tokens == 160


@pytest.mark.parametrize("join", ["grouped", "stacked"])
def test_an_export_detects_a_wrong_split_of_fused_matrices(
    run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, join: str
) -> None:
    """Splitting and fusing matrices with the same error cancels; our decoder reads them fused."""
    unfuse = Parameter.unfuse

    def wrong(self: Parameter, tensor: torch.Tensor, groups: int) -> tuple[torch.Tensor, ...]:
        first, *rest = unfuse(self, tensor, groups)
        return (rest[0], first, *rest[1:]) if self.join == join else (first, *rest)

    monkeypatch.setattr(checkpoint_weights.Parameter, "unfuse", wrong)
    refused(lambda: export(run_directory, tmp_path / "out"), tmp_path)


@pytest.mark.parametrize("target", ["hf", "dsmath"])
def test_a_megatron_checkpoint_passes_the_gate_both_ways(folder: Path, tmp_path: Path, target: Any) -> None:
    shape = {f"model__{key}": value for key, value in HuggingFaceFolder(folder).model.model_dump().items()}
    run_ranks(1, ranks.save_as_megatron, run_config(**shape), folder, tmp_path / "iter_0000040", {}, False)
    report = convert(tmp_path / "iter_0000040", tmp_path / "out", target, folder, vocabulary_size=320)
    assert "same next token at 160 of 160 positions" in str(report)


def test_no_gate_is_recorded(folder: Path, tmp_path: Path) -> None:
    report = import_folder(folder, tmp_path / "checkpoint", gate=False)
    verdict = read_manifest(tmp_path / "checkpoint").logit_gate
    assert verdict is not None and verdict.skipped == "--no-gate"
    assert "logits: not compared with transformers: --no-gate" in str(report)
    export(tmp_path / "checkpoint", tmp_path / "out", gate=False)
    assert "| logits | not compared with transformers: --no-gate |" in (tmp_path / "out/README.md").read_text()


def test_without_transformers_the_conversion_reports_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(logit_gate, "version", absent)
    assert "pip install 'megatron_dsmath[hf]'" in str(import_folder(folder, tmp_path / "checkpoint"))


def test_without_memory_the_conversion_reports_the_bytes_needed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Memory(NamedTuple):
        available: int

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(1_000_000_000))
    report = import_folder(folder, tmp_path / "checkpoint")
    assert report.manifest.logit_gate.skipped == "not enough memory: 1.5 GB needed, 1.0 GB free"


def test_a_folder_without_a_tokenizer_is_compared_on_ids_spread_over_the_vocabulary(
    folder: Path, tmp_path: Path
) -> None:
    from tests.checkpoint.llama import write_llama

    weights = HuggingFaceFolder(write_llama(tmp_path / "hf", vocab_size=96))
    assert logit_gate.fixed_ids(weights) == [list(range(0, 96, 3))]
    assert len(logit_gate.fixed_ids(HuggingFaceFolder(folder))) == len(logit_gate.TEXTS) + 1


def test_each_text_has_enough_tokens_of_deepseeks_tokenizer(shared_data: Path) -> None:
    from megatron_dsmath.data.tokenizing.tokenizer import load_tokenizer

    rows = load_tokenizer(shared_data / "tokenizer" / "deepseek_llm").encode_batch(logit_gate.TEXTS)
    assert [len(row) for row in rows if len(row) < logit_gate.LENGTH] == []


def test_nan_logits_have_the_largest_difference() -> None:
    reference = torch.randn(1, 4, 9)
    own = reference.clone()
    own[0, 2, 3] = float("nan")
    assert logit_gate.compare_logits(own, reference, "5").largest_difference == sys.float_info.max


def test_our_decoder_runs_in_one_process_inside_process_groups(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logit_gate, "run_own_logits", IN_A_PROCESS_OF_ITS_OWN)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "DSMATH_RENDEZVOUS": str(tmp_path / "nowhere")}.items():
        monkeypatch.setitem(os.environ, name, value)
    assert import_folder(folder, tmp_path / "checkpoint").manifest.logit_gate.equal_next_tokens == 160


def test_a_failed_forward_pass_is_one_error_with_its_message(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logit_gate, "run_own_logits", IN_A_PROCESS_OF_ITS_OWN)
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'out of luck' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(ConversionError, match="out of luck"):
        import_folder(folder, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def refused(convert: Callable[[], object], tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="computes other logits than transformers") as caught:
        convert()
    assert "--no-gate" in caught.value.text() and caught.value.exit_code == 78
    assert list(tmp_path.iterdir()) == []
