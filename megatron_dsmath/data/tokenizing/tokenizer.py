"""Hugging Face `tokenizer.json` and SentencePiece `.model` behind one interface: text to ids and back."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_dsmath.data.tokenizing import hugging_face_pieces, sentencepiece_pieces
from megatron_dsmath.data.tokenizing.piece_encoder import EncodedTexts, PieceEncoder
from megatron_dsmath.errors import TokenizerError

# What a Hugging Face folder may hold of a tokenizer; an exported model carries those that are there.
HUGGING_FACE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
WIDE_BYTES = 2  # a character: what Chinese and its neighbours are above, and all other scripts below
DECIDES_THE_IDS = ("added_tokens", "normalizer", "pre_tokenizer", "model")  # the parts of a tokenizer.json that do


class Tokenizer(ABC):
    """Text to ids and back. Neither BOS nor EOD is ever added by `encode`: who needs one writes it.

    `path`: the file it was loaded from. `files`: what to copy so that another program loads the same tokenizer.
    `vocabulary_size`: every id is below it. `end_of_document`, `begin_of_document`: ids; a vocabulary may lack the
    second.
    """

    path: Path
    files: tuple[Path, ...]
    vocabulary_size: int
    end_of_document: int
    begin_of_document: int | None

    def encode(self, text: str) -> list[int]:
        """The ids of `text`."""
        return self._encode_with_library([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, on one core: whoever has more cores starts more processes."""
        encoded = self._encode_with_pieces(texts)
        return self._encode_with_library(texts) if encoded is None else encoded.to_lists()

    def encode_arrays(self, texts: Sequence[str]) -> EncodedTexts:
        """What `encode_batch` gives, as two arrays."""
        encoded = self._encode_with_pieces(texts)
        return EncodedTexts.from_lists(self._encode_with_library(texts)) if encoded is None else encoded

    @abstractmethod
    def _encode_with_library(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, by the library whose ids count."""

    @abstractmethod
    def _encode_with_pieces(self, texts: Sequence[str]) -> EncodedTexts | None:
        """The same ids, faster; None where this is not proved for this tokenizer and these texts."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; an id that no token has (a padded row of the embedding) has no text."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """sha256, in hexadecimal, of what decides the ids: equal for equal tokenizers, wherever the file lies."""


def load_tokenizer(path: str | Path, end_of_document: str | None = None, *, parse_special: bool = False) -> Tokenizer:
    """Load a tokenizer from a folder, a `tokenizer.json` or a SentencePiece `.model`.

    `end_of_document` names the token that ends a document; without it, it is the `eos_token` of the
    `tokenizer_config.json` beside the `tokenizer.json`, or the EOS of the SentencePiece model. Special-token literals
    in a text are plain text, unless `parse_special` turns them into their ids as Megatron does (SentencePiece never
    does that). Raises TokenizerError when the tokenizer does not load or has no such token.
    """
    file = _find_file(Path(path))
    if file.suffix == ".json":
        return HuggingFaceTokenizer(file, end_of_document, parse_special)
    return SentencePieceTokenizer(file, end_of_document)


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`, run by the `tokenizers` library."""

    def __init__(self, path: Path, end_of_document: str | None, parse_special: bool) -> None:
        """Load the file, and the names of its special tokens from `tokenizer_config.json`. Raises TokenizerError."""
        from tokenizers import Tokenizer as Engine

        config = path.with_name("tokenizer_config.json")
        names = _read_object(config) if config.is_file() else {}
        try:
            self._engine = Engine.from_file(str(path))
            self._engine.no_truncation()
            self._engine.no_padding()
            self._engine.encode_special_tokens = not parse_special
        except Exception as error:  # the library raises plain Exception
            raise _does_not_load(path, error) from error
        self.path = path
        self.files = tuple(path.with_name(name) for name in HUGGING_FACE_FILES if path.with_name(name).is_file())
        self.vocabulary_size = max(self._engine.get_vocab(with_added_tokens=True).values()) + 1
        self.end_of_document = self._id(end_of_document or _token_name(names, "eos_token"))
        begin = _token_name(names, "bos_token")
        self.begin_of_document = None if begin is None else self._id(begin)

    def _encode_with_library(self, texts: Sequence[str]) -> list[list[int]]:
        # One text at a time keeps to one core; the fast call skips offsets, which nobody reads here.
        return [self._engine.encode_batch_fast([text], add_special_tokens=False)[0].ids for text in texts]

    def _encode_with_pieces(self, texts: Sequence[str]) -> EncodedTexts | None:
        encoder = self._pieces
        if encoder is None or any(literal in text for literal in self._literals for text in texts):
            return None
        return encoder.encode(texts)

    @cached_property
    def _literals(self) -> tuple[str, ...]:
        return hugging_face_pieces.added_literals(self._engine)

    @cached_property
    def _pieces(self) -> PieceEncoder | None:
        return hugging_face_pieces.build_piece_encoder(self._engine)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens by their names."""
        return str(self._engine.decode(list(ids), skip_special_tokens=False))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the vocabulary, merges, added tokens, normalizer and pre-tokenizer, whatever their formatting."""
        content = _read_object(self.path)
        parts = {name: content.get(name) for name in DECIDES_THE_IDS}
        model = dict(content["model"])
        if "merges" in model:  # "a b" in older files, ["a", "b"] in newer ones
            model["merges"] = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        canonical = json.dumps(parts | {"model": model}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _id(self, token: str | None) -> int:
        if token is None:
            raise _no_end_of_document(self.path, "no eos_token in a tokenizer_config.json beside it")
        identifier: int | None = self._engine.token_to_id(token)
        if identifier is None:
            raise _not_in_vocabulary(self.path, token)
        return identifier


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece `.model`, run by the `sentencepiece` library, which never parses control symbols in a text."""

    def __init__(self, path: Path, end_of_document: str | None) -> None:
        """Load the model. Raises TokenizerError."""
        import sentencepiece

        sentencepiece.set_min_log_level(2)  # the library reports harmless pieces of a model on stderr, in every worker
        try:
            self._model = path.read_bytes()
            self._engine = sentencepiece.SentencePieceProcessor(model_proto=self._model)
        except (OSError, RuntimeError) as error:
            raise _does_not_load(path, error) from error
        if not self._model:  # which the library takes for no model at all
            raise _does_not_load(path, "an empty file")
        self.path = path
        self.files = (path,)
        self.vocabulary_size = self._engine.get_piece_size()
        self.end_of_document = self._end_of_document(end_of_document)
        begin = self._engine.bos_id()
        self.begin_of_document = begin if begin >= 0 else None

    def _encode_with_library(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._engine.encode(text) for text in texts]

    def _encode_with_pieces(self, texts: Sequence[str]) -> EncodedTexts | None:
        return None if self._pieces is None or _mostly_wide(texts) else self._pieces.encode(texts)

    @cached_property
    def _pieces(self) -> PieceEncoder | None:
        return sentencepiece_pieces.build_piece_encoder(self._model)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control symbols have none."""
        return str(self._engine.decode([identifier for identifier in ids if identifier < self.vocabulary_size]))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the model file."""
        return hashlib.sha256(self._model).hexdigest()

    def _end_of_document(self, token: str | None) -> int:
        identifier = int(self._engine.eos_id() if token is None else self._engine.piece_to_id(token))
        if identifier < 0:
            raise _no_end_of_document(self.path, "the model has no EOS")
        if token is not None and self._engine.id_to_piece(identifier) != token:
            raise _not_in_vocabulary(self.path, token)
        return identifier


def _mostly_wide(texts: Sequence[str]) -> bool:
    """Whether `texts` are Chinese and the like, whose pieces repeat too little: there the library is the faster one."""
    return sum(len(text.encode()) for text in texts) > WIDE_BYTES * sum(map(len, texts))


def _find_file(path: Path) -> Path:
    if path.is_dir():
        models = sorted(path.glob("*.model"))
        candidates = [path / "tokenizer.json", path / "tokenizer.model", *(models if len(models) == 1 else [])]
    else:
        candidates = [path] if path.suffix in (".json", ".model") else []
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise TokenizerError(
        "no tokenizer found",
        where=path,
        found=_what_is_there(path),
        expected="a tokenizer.json, a SentencePiece .model, or a folder with one of them",
        fix="give the path of one of these files",
    )


def _what_is_there(path: Path) -> str:
    if path.is_dir():
        return ", ".join(sorted(file.name for file in path.iterdir())[:10]) or "an empty folder"
    return f"a file named {path.name}" if path.exists() else "nothing at this path"


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _does_not_load(path, error) from error
    if not isinstance(content, dict):
        raise _does_not_load(path, f"a JSON {type(content).__name__}, not an object")
    return content


def _token_name(names: dict[str, Any], role: str) -> str | None:
    """The token of a role in a tokenizer_config.json, where it is a string or an object that holds one."""
    entry = names.get(role)
    name = entry.get("content") if isinstance(entry, dict) else entry
    return name if isinstance(name, str) else None


def _does_not_load(path: Path, found: object) -> TokenizerError:
    return TokenizerError(
        "the tokenizer does not load",
        where=path,
        found=found,
        expected="a tokenizer.json of Hugging Face tokenizers, or a SentencePiece .model",
        fix="check that the file is complete (a git-LFS pointer is a few lines of text: fetch the file itself)",
    )


def _no_end_of_document(path: Path, found: str) -> TokenizerError:
    return TokenizerError(
        "the tokenizer does not say which token ends a document",
        where=path,
        found=found,
        expected="an eos_token, or the name of one",
        fix="name it with --eod-token, or put the tokenizer_config.json beside the tokenizer.json",
    )


def _not_in_vocabulary(path: Path, token: str) -> TokenizerError:
    return TokenizerError(
        "a special token is not in the vocabulary",
        where=path,
        found=repr(token),
        expected="a token of this vocabulary",
        fix="name one that it has with --eod-token, or correct the tokenizer_config.json",
    )
