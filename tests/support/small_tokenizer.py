"""A byte-level BPE tokenizer of a few hundred words, trained on the spot: what a test without real data needs."""

from __future__ import annotations

import json
from pathlib import Path

BEGIN, END = "<s>", "</s>"
TEXT = "the quick brown fox jumps over the lazy dog; 数学是科学的皇后。 x^2 + y^2 = z^2, \\frac{1}{2}\n"


def write_small_tokenizer(folder: Path) -> Path:
    """Write tokenizer.json and tokenizer_config.json into `folder`, which is returned."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(name, special=True) for name in (BEGIN, END)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    end = {"__type": "AddedToken", "content": END, "lstrip": False, "normalized": False, "rstrip": False}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BEGIN, "eos_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
