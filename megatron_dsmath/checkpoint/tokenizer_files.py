"""The files next to a model's weights: its tokenizer, its chat template and its generation settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megatron_dsmath.checkpoint.safetensors_files import inside, read_json
from megatron_dsmath.checkpoint.weight_reader import WeightReader
from megatron_dsmath.data.tokenizing.tokenizer import HUGGING_FACE_FILES, Tokenizer, load_tokenizer
from megatron_dsmath.files.atomic_files import sync, write_text

FOLDER = "tokenizer"  # in a checkpoint
GENERATION = "generation_config.json"
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


class Chat(NamedTuple):
    """The format of a model trained on conversations: a Jinja template, and the token that ends an answer."""

    template: str
    end_of_answer: int


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """The tokenizer files of a model's folder. Raises ConversionError for a link to outside the folder."""
    names = [*HUGGING_FACE_FILES, GENERATION, *sorted(path.name for path in folder.glob("*.model"))]
    return tuple(inside(folder, name) for name in dict.fromkeys(names) if (folder / name).is_file())


def tokenizer_file(files: Sequence[Path]) -> Path | None:
    """The file among `files` (of one folder) from which the tokenizer is loaded; None if there is none."""
    engines = [file for file in files if file.name == "tokenizer.json"]
    engines += [file for file in files if file.suffix == ".model"]
    return engines[0] if engines else None


def load_from(files: Sequence[Path]) -> Tokenizer | None:
    """Load the tokenizer from `files`; None if there is none. Raises TokenizerError."""
    file = tokenizer_file(files)
    return None if file is None else load_tokenizer(file)


def special_token_ids(files: Sequence[Path], config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """BOS, EOS and padding ids from the generation settings, else from config.json, else from the tokenizer."""
    settings = [read_json(file) for file in files if file.name == GENERATION]
    for source in [*settings, config or {}]:
        found = {key: source[key] for key in _SPECIAL if source.get(key) is not None}
        if found:
            return found
    tokenizer = load_from(files)
    if tokenizer is None:
        return {}
    ids = {"bos_token_id": tokenizer.begin_of_document, "eos_token_id": tokenizer.end_of_document}
    return {key: value for key, value in ids.items() if value is not None}


def write_beside_weights(weights: WeightReader, folder: Path, chat: Chat | None = None) -> None:
    """Copy the tokenizer files of `weights` into `folder`, and write generation settings if there are none.

    `chat` replaces the tokenizer's template, and its end of an answer is added to the tokens that stop generation.
    """
    folder.mkdir(exist_ok=True)
    for file in weights.tokenizer_files:
        shutil.copyfile(file, folder / file.name)
        sync(folder / file.name)
    settings = folder / GENERATION
    generation = read_json(settings) if settings.exists() else {"_from_model_config": True, **weights.special_token_ids}
    contents = {} if settings.exists() else {GENERATION: _as_json(generation)}
    if chat is not None:
        ends = _with_end(generation.get("eos_token_id"), chat.end_of_answer)
        contents = {GENERATION: _as_json(generation | {"eos_token_id": ends}), **_with_template(folder, chat.template)}
    for name, content in contents.items():
        write_text(folder / name, content)


def _with_template(folder: Path, template: str) -> dict[str, str]:
    """Name and content of the file with the template: tokenizer_config.json, else chat_template.jinja."""
    config, alone = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    if not config.exists():
        return {alone.name: template}
    alone.unlink(missing_ok=True)  # programs would prefer it
    return {config.name: _as_json(read_json(config) | {"chat_template": template})}


def _with_end(known: Any, end_of_answer: int) -> Any:
    """The tokens that stop generation: the end of an answer, then the `known` ones (one, several or None)."""
    ids = known if isinstance(known, list) else [] if known is None else [known]
    if end_of_answer in ids:
        return known
    return [end_of_answer, *ids] if ids else end_of_answer


def _as_json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
