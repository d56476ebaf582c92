from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_dsmath.checkpoint.from_huggingface import HuggingFaceFolder, import_folder
from megatron_dsmath.checkpoint.manifest import read_manifest
from megatron_dsmath.checkpoint.to_huggingface import export, write_huggingface
from megatron_dsmath.checkpoint.tokenizer_files import Chat, write_beside_weights
from megatron_dsmath.checkpoint.weights import open_weights
from megatron_dsmath.data.sft.build_set import build
from megatron_dsmath.data.sft.example_encoder import Options
from megatron_dsmath.data.sft.examples import Examples
from megatron_dsmath.data.sft.sources import ConversationSource
from megatron_dsmath.data.tokenizing.tokenizer import load_tokenizer
from tests.checkpoint.llama import same_bits, tensors_of, write_llama, write_llama_with_tokenizer
from tests.data.sft.sets import open_set, rows, write_rows


@pytest.fixture(scope="module")
def deepseek(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeepSeek's folder with two narrow layers: its config.json, tokenizer and vocabulary, weights in parts."""
    folder = tmp_path_factory.mktemp("hf") / "deepseek-coder-7b-base-v1.5"
    config = json.loads((shared_data / "model" / "deepseek_math_7b_config.json").read_text())
    narrow = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96}
    narrow |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    write_llama(folder, dtype=torch.bfloat16, shard="15MB", vocab_size=102400, **narrow)
    (folder / "config.json").write_text(json.dumps(config | narrow))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(shared_data / "tokenizer" / "deepseek_llm" / name, folder / name)
    settings = {"_from_model_config": True, "bos_token_id": 100000, "eos_token_id": 100001}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def test_deepseeks_folder_is_imported_and_exported_unchanged(deepseek: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report = import_folder(deepseek, tmp_path / "checkpoint", gate=False)
    assert (report.manifest.precision, report.skipped) == ("bf16", ())
    export(tmp_path / "checkpoint", tmp_path / "out", gate=False)
    assert same_bits(tensors_of(tmp_path / "out"), tensors_of(deepseek))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (deepseek / name).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = load_tokenizer(deepseek)
    for text in ("def f(x):\n    return x ** 2", "数学是科学的皇后。", r"$\frac{1}{2}$", "1234567"):
        ids = tokenizer(text)["input_ids"]
        assert ids == [100000, *theirs.encode(text)]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    prompt = tokenizer("数学", return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    answer = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert model.dtype == torch.bfloat16 and answer.shape[1] <= prompt["input_ids"].shape[1] + 4


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_is_exported_and_applied(tmp_path: Path, place: str) -> None:
    from transformers import AutoTokenizer

    folder = write_llama_with_tokenizer(tmp_path / "hf")
    template = "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }}\n{% endfor %}"
    if place.endswith(".json"):
        settings = json.loads((folder / place).read_text())
        (folder / place).write_text(json.dumps(settings | {"chat_template": template}))
    else:
        (folder / place).write_text(template)
    import_folder(folder, tmp_path / "checkpoint", gate=False)
    export(tmp_path / "checkpoint", tmp_path / "out", gate=False)
    messages = [{"role": "user", "content": "x^2"}, {"role": "assistant", "content": "jumps"}]
    text = AutoTokenizer.from_pretrained(tmp_path / "out").apply_chat_template(messages, tokenize=False)
    assert text == "user: x^2\nassistant: jumps\n"


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WRITTEN: dict[str, tuple[dict[str, Any], Any]] = {
    "the built-in template": ({}, 1),
    "a file": ({"template": "chatml.jinja"}, [301, 1]),
    "another end, named": ({"eod_token": "<|im_end|>"}, [301, 1]),
}


@pytest.fixture(scope="module")
def with_chat_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer has two more special tokens and another chat template."""
    folder = write_llama_with_tokenizer(tmp_path_factory.mktemp("hf"))
    content = json.loads((folder / "tokenizer.json").read_text())
    like = content["added_tokens"][0]
    content["added_tokens"] += [
        like | {"id": identifier, "content": name} for identifier, name in ((300, "<|im_start|>"), (301, "<|im_end|>"))
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text("not this one")
    return folder


@pytest.mark.parametrize("what", WRITTEN)
def test_the_exported_template_renders_conversations_as_in_training(
    what: str, with_chat_tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ours: the examples of a set; theirs: transformers, given the exported folder alone."""
    from transformers import AutoTokenizer, GenerationConfig

    options, ends = WRITTEN[what]
    monkeypatch.chdir(tmp_path)
    Path("chatml.jinja").write_text(CHATML)
    source = ConversationSource("all", (write_rows(tmp_path / "all.jsonl", rows(12)),))
    build([source], with_chat_tokens, "set", Options(sequence_length=256, **options))
    examples = Examples("set")
    Path("chatml.jinja").unlink()  # the set has it
    import_folder(with_chat_tokens, tmp_path / "checkpoint", gate=False)
    plan = open_set(examples, 256, seed=0).plan.model_dump(mode="json")
    manifest = read_manifest(tmp_path / "checkpoint").model_copy(update={"state": {"plan": plan}})
    with closing(open_weights(tmp_path / "checkpoint")) as weights:
        write_huggingface(weights, manifest, tmp_path / "out", None)

    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "out"), load_tokenizer(with_chat_tokens)
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == ends
    for example, row in enumerate(rows(12)):
        ids, is_target = (array.tolist() for array in examples.read(example))
        asked = [{"role": "user", "content": row["question"]}]
        prompt = theirs.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        assert prompt == ids[: is_target.index(True)]
        conversation = [*asked, {"role": "assistant", "content": row["answer"]}]
        assert theirs.apply_chat_template(conversation, tokenize=False) == ours.decode(ids)
        end = ids[len(ids) - 1 - is_target[::-1].index(True)]
        assert end == (ends[0] if isinstance(ends, list) else ends)


def test_a_template_gets_its_own_file_without_tokenizer_settings(tmp_path: Path) -> None:
    folder = write_llama_with_tokenizer(tmp_path / "hf")
    (folder / "tokenizer_config.json").unlink()
    with closing(HuggingFaceFolder(folder)) as weights:
        write_beside_weights(weights, tmp_path / "out", Chat("{{ bos_token }}", 7))
    assert (tmp_path / "out/chat_template.jinja").read_text() == "{{ bos_token }}"
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"] == [7, 1]
