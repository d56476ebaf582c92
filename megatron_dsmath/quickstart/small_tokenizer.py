"""A small tokenizer in DeepSeek's manner, trained on the spot: byte-level BPE (DeepSeek LLM paper, section 2.1)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_dsmath.data.text.documents import read_documents
from megatron_dsmath.files.atomic_files import AtomicFiles

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

BEGIN_OF_SENTENCE = "<｜begin▁of▁sentence｜>"
END_OF_SENTENCE = "<｜end▁of▁sentence｜>"

# DeepSeek's patterns in their order. Letters are those that have a case, without the mathematical alphabets:
# DeepSeek's own list, which names them one by one, splits all texts tried the same (tests/quickstart).
PATTERNS = (
    "[\r\n]",
    "\\s?[[\\p{Lu}\\p{Ll}\\p{Lt}]&&[^\U0001d400-\U0001d7ff]]+",
    "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
    "\\s+$",
    "[一-龥\u0800-一가-\ud7ff]+",
)

# User: question, blank line, "Assistant:" without a space after it (DeepSeek-Math, README).
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": BEGIN_OF_SENTENCE,
    "eos_token": END_OF_SENTENCE,
    "chat_template": CHAT_TEMPLATE,
    "clean_up_tokenization_spaces": False,
    "model_max_length": 4096,
    # The original says LlamaTokenizerFast, for which transformers 5 puts SentencePiece's splitting in place of ours.
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def train_tokenizer(files: Sequence[Path], folder: Path, vocabulary_size: int = 4096) -> Path:
    """Train on the `text` of JSONL `files`, write `folder`/tokenizer.json and tokenizer_config.json; return `folder`.

    `vocabulary_size` counts the two sentence marks, which come last, as DeepSeek's do; texts too few for so many
    merges give fewer tokens. The same texts in the same order give the same bytes. transformers' AutoTokenizer loads
    the folder. Raises DataError for a file that is missing or no JSONL, and OutputError.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - 2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # every byte, so that no text is unknown
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(files), trainer=trainer)
    marks = [AddedToken(mark, normalized=False, special=True) for mark in (BEGIN_OF_SENTENCE, END_OF_SENTENCE)]
    tokenizer.add_special_tokens(marks)
    begin = (BEGIN_OF_SENTENCE, tokenizer.token_to_id(BEGIN_OF_SENTENCE))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN_OF_SENTENCE} $A",
        pair=f"{BEGIN_OF_SENTENCE} $A {BEGIN_OF_SENTENCE}:1 $B:1",
        special_tokens=[begin],
    )
    with AtomicFiles(folder / "tokenizer_config.json", folder / "tokenizer.json") as (config, vocabulary):
        config.write((json.dumps(CONFIG, indent=2, ensure_ascii=False) + "\n").encode())
        vocabulary.write(tokenizer.to_str(pretty=True).encode())
    return folder


def _pre_tokenizer() -> PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS]
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([*splits, digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _texts(files: Sequence[Path]) -> Iterator[str]:
    for file in files:
        for document in read_documents(file, ["text"]):
            yield document.texts[0]
