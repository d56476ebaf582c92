"""Training of a small byte-level BPE tokenizer like DeepSeek's (DeepSeek LLM paper, section 2.1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from megatron_dsmath.data.sft.template import DEEPSEEKMATH_JINJA
from megatron_dsmath.data.text.documents import read_documents
from megatron_dsmath.files.atomic_files import AtomicFiles

BEGIN_OF_SENTENCE = "<｜begin▁of▁sentence｜>"
END_OF_SENTENCE = "<｜end▁of▁sentence｜>"

# DeepSeek's patterns in their order. DeepSeek lists its letters one by one; ours are those with a case, without the
# mathematical alphabets. Both split all texts in tests/quickstart alike.
PATTERNS = (
    "[\r\n]",
    "\\s?[[\\p{Lu}\\p{Ll}\\p{Lt}]&&[^\U0001d400-\U0001d7ff]]+",
    "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
    "\\s+$",
    "[一-龥\u0800-一가-\ud7ff]+",
)

CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": BEGIN_OF_SENTENCE,
    "eos_token": END_OF_SENTENCE,
    "chat_template": DEEPSEEKMATH_JINJA,
    "clean_up_tokenization_spaces": False,
    "model_max_length": 4096,
    # DeepSeek's is LlamaTokenizerFast, in which transformers 5 replaces the pre-tokenizer by SentencePiece's.
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def train_tokenizer(files: Sequence[Path], folder: Path, vocabulary_size: int = 4096) -> Path:
    """Train on the `text` of JSONL `files`, write `folder`/tokenizer.json and tokenizer_config.json; return `folder`.

    `vocabulary_size` includes the two special tokens, which come last, as DeepSeek's do. Short texts may give fewer
    tokens. The same texts in the same order give the same bytes. transformers' AutoTokenizer loads the folder. Raises
    OutputError, and DataError for a file that is missing or not JSONL.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS]
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - 2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # every byte, so that every text can be encoded
        show_progress=False,
    )
    texts = (document.texts[0] for file in files for document in read_documents(file, ["text"]))
    tokenizer.train_from_iterator(texts, trainer=trainer)
    special = [AddedToken(name, normalized=False, special=True) for name in (BEGIN_OF_SENTENCE, END_OF_SENTENCE)]
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN_OF_SENTENCE} $A",
        pair=f"{BEGIN_OF_SENTENCE} $A {BEGIN_OF_SENTENCE}:1 $B:1",
        special_tokens=[(BEGIN_OF_SENTENCE, tokenizer.token_to_id(BEGIN_OF_SENTENCE))],
    )
    with AtomicFiles(folder / "tokenizer_config.json", folder / "tokenizer.json") as (config, vocabulary):
        config.write((json.dumps(CONFIG, indent=2, ensure_ascii=False) + "\n").encode())
        vocabulary.write(tokenizer.to_str(pretty=True).encode())
    return folder
