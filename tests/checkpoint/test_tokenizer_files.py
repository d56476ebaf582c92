from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from megatron_dsmath.checkpoint.from_huggingface import import_folder
from megatron_dsmath.checkpoint.to_huggingface import export
from megatron_dsmath.data.tokenizer import load_tokenizer
from tests.checkpoint.llama import same_bits, tensors_of, write_llama, write_llama_with_tokenizer


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


def test_deepseeks_folder_comes_in_and_goes_out_as_it_is(deepseek: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report = import_folder(deepseek, tmp_path / "checkpoint", gate=False)
    assert (report.precision, report.skipped) == ("bf16", ())
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
def test_a_chat_template_travels_and_is_applied(tmp_path: Path, place: str) -> None:
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
