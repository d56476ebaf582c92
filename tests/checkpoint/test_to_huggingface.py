from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_dsmath.checkpoint import store, to_huggingface
from megatron_dsmath.checkpoint.from_huggingface import import_folder
from megatron_dsmath.checkpoint.manifest import MANIFEST, LogitVerdict, Manifest, read_manifest, source_commit
from megatron_dsmath.checkpoint.model_card import model_card
from megatron_dsmath.checkpoint.to_huggingface import export
from megatron_dsmath.checkpoint.weights import open_weights
from megatron_dsmath.errors import CheckpointError, ConversionError, OutputError
from megatron_dsmath.files import directories
from tests.checkpoint.llama import same_bits, tensors_of, write_llama, write_llama_with_tokenizer
from tests.checkpoint.ranks import save_training_shards
from tests.support.ranks import run_ranks
from tests.support.runs import run_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama_with_tokenizer(tmp_path_factory.mktemp("hf") / "llama", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def checkpoint(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoint") / "imported"
    import_folder(folder, out, gate=False)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_import_then_export_is_bitwise_equal(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = write_llama(tmp_path / "hf", dtype=dtype, shard="100KB")
    import_folder(folder, tmp_path / "checkpoint", gate=False)
    export(tmp_path / "checkpoint", tmp_path / "out", gate=False)
    assert same_bits(tensors_of(tmp_path / "out"), tensors_of(folder))


def test_export_writes_the_file_that_transformers_writes_byte_for_byte(
    folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    export(checkpoint, tmp_path / "out", gate=False)
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_transformers_generates_with_the_unchanged_folder(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export(checkpoint, tmp_path / "out", gate=False)
    texts = []
    for path in (folder, tmp_path / "out"):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        prompt = tokenizer("the quick brown", return_tensors="pt")
        texts.append(tokenizer.decode(model.generate(**prompt, max_new_tokens=12, do_sample=False)[0]))
        assert model.dtype == torch.bfloat16
    original, exported = texts
    assert exported == original
    assert exported.startswith("the quick brown") and len(exported) > len("the quick brown")


def test_every_value_of_the_configuration_is_kept(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig

    export(checkpoint, tmp_path / "out", gate=False)
    ours, theirs = (AutoConfig.from_pretrained(path).to_dict() for path in (tmp_path / "out", folder))
    assert {key for key in theirs if ours[key] != theirs[key]} <= {"_name_or_path", "transformers_version"}


def test_tokenizer_and_generation_settings_are_unchanged(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "out", gate=False)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_large_models_are_split_into_files_that_transformers_loads(
    folder: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    write = to_huggingface.write_safetensors
    monkeypatch.setattr(to_huggingface, "write_safetensors", lambda *arguments: write(*arguments, shard_bytes=50_000))
    export(checkpoint, tmp_path / "out", gate=False)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors" and len(files) > 2
    assert all(file.stat().st_size < 60_000 for file in files)  # 50,000 and the header
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert same_bits(dict(loaded), tensors_of(folder))


def training_run(
    folder: Path, root: Path, step: int = 40, state: dict[str, Any] | None = None, data_size: int = 1, **overrides: Any
) -> Path:
    """A checkpoint as a training run publishes it, with the folder's weights; returns the run's directory."""
    shape = {f"model__{key}": value for key, value in open_weights(folder).model.model_dump().items()}
    run = run_config(**shape, **overrides)
    incomplete = directories.begin(root / "checkpoints" / f"step_{step}")
    run_ranks(run.parallel.model_size * data_size, save_training_shards, run, folder, incomplete / "shards")
    (incomplete / "tokenizer").mkdir()
    for file in open_weights(folder).tokenizer_files:
        if file.name != "generation_config.json":
            shutil.copyfile(file, incomplete / "tokenizer" / file.name)
    manifest = Manifest(
        kind="training",
        step=step,
        next_sample=320,
        consumed_tokens=10240,
        model=run.model,
        layout=run.parallel.model_dump(mode="json"),
        precision=run.precision,
        tokenizer_fingerprint=None,
        state=state or {"tokens_by_corpus": {"mathematics": 7680, "code": 2560}},
        files=store.hash_files(incomplete),
    )
    store.write_manifest(incomplete, manifest)
    directories.publish(incomplete)
    return root


@pytest.fixture(scope="module")
def run_directory(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_run(folder, tmp_path_factory.mktemp("run"), parallel__tensor=2, precision="bf16")


def test_the_newest_checkpoint_of_a_run_is_exported_with_its_tokenizer(
    folder: Path, run_directory: Path, tmp_path: Path
) -> None:
    report = export(run_directory, tmp_path / "out", gate=False)
    assert (report.step, report.precision) == (40, "bf16")
    assert same_bits(tensors_of(tmp_path / "out"), tensors_of(folder))
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, 1)  # from the tokenizer's own files
    settings = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert settings["eos_token_id"] == 1


def test_the_card_of_a_fine_tuned_model_lists_conversations(run_directory: Path) -> None:
    manifest = read_manifest(run_directory / "checkpoints/step_40")
    state = {"tokens_by_corpus": {"kind/cot": 7680}, "plan": {"chat_template": "", "end_of_answer": 1}}
    card = model_card("out", manifest.model_copy(update={"state": state}), LogitVerdict(), {})
    assert "| kind, language or source of conversations | target tokens |\n|---|---|\n| kind/cot | 7,680 |" in card
    assert "corpus" not in card


def test_the_card_contains_training_facts_and_the_licence(run_directory: Path, tmp_path: Path) -> None:
    export(run_directory, tmp_path / "out", gate=False)
    card = (tmp_path / "out/README.md").read_text()
    for fact in (
        f"commit {source_commit()}",
        "| optimizer steps | 40 |",
        "| tokens seen | 10,240 |",
        "| mathematics | 7,680 |",
        "DeepSeek Model License",
    ):
        assert fact in card
    assert str(run_directory.parent) not in card  # no paths in the card


def test_the_card_contains_the_given_scores(run_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text('{"gsm8k": 64.2, "math": 36.2}')
    export(run_directory, tmp_path / "out", gate=False, scores=tmp_path / "scores.json")
    card = (tmp_path / "out/README.md").read_text()
    assert "| gsm8k | 64.2 |" in card and "| math | 36.2 |" in card


@pytest.mark.parametrize("content", ["", "[64.2]", '{"gsm8k": "64.2"}', '{"gsm8k": NaN}', '{"gsm8k": true}'])
def test_scores_that_are_not_numbers_are_refused(run_directory: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(ConversionError, match=r"scores\.json"):
        export(run_directory, tmp_path / "out", gate=False, scores=tmp_path / "scores.json")
    assert not (tmp_path / "out").exists()


def test_a_flipped_bit_is_found_before_anything_is_written(checkpoint: Path, tmp_path: Path) -> None:
    spoiled = Path(shutil.copytree(checkpoint, tmp_path / "spoiled"))
    file = spoiled / "weights/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        export(spoiled, tmp_path / "out", gate=False)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        export(tmp_path, tmp_path / "out", gate=False)


def test_a_folder_that_is_not_empty_is_not_changed(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        export(checkpoint, tmp_path, gate=False)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_filled(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export(checkpoint, tmp_path / "out", gate=False)
    assert (tmp_path / "out/config.json").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
def test_a_kill_at_any_file_leaves_no_output_folder(
    checkpoint: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends while that file is synced; the next export removes the leftovers and is complete."""
    from megatron_dsmath.checkpoint import safetensors_files
    from megatron_dsmath.files import atomic_files

    sync = atomic_files.sync

    def die(path: Path) -> None:
        if path.name == name:
            os._exit(9)
        sync(path)

    process = os.fork()
    if process == 0:
        safetensors_files.sync = atomic_files.sync = die
        export(checkpoint, tmp_path / "out", gate=False)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == ["out.incomplete"]
    export(checkpoint, tmp_path / "out", gate=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_folder_does_not_contain_the_manifest(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "out", gate=False)
    assert not (tmp_path / "out" / MANIFEST).exists()
