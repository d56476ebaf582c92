"""One interface to Hugging Face `tokenizer.json` and SentencePiece `.model` files: text to ids and back."""

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

# The tokenizer files that a Hugging Face folder may contain; those that exist are copied into an exported model.
HUGGING_FACE_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja"),
)
CJK_BYTES = 2  # per character: Chinese, Japanese and Korean text has more, text in other scripts has less
ID_PARTS = ("added_tokens", "normalizer", "pre_tokenizer", "model")  # the parts of a tokenizer.json that determine ids


class Tokenizer(ABC):
    """Text to ids and back. `encode` never adds BOS or EOD; the caller adds them where they are needed.

    `path`: the file it was loaded from. `files`: the files to copy so that another program loads the same tokenizer.
    `vocabulary_size`: every id is smaller. `end_of_document`, `begin_of_document`: ids; the second may be missing.
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
        """The ids of each text."""
        return self.encode_arrays(texts).to_lists()

    def encode_arrays(self, texts: Sequence[str]) -> EncodedTexts:
        """The ids of each text as two arrays, on one core; use several processes for more cores."""
        encoder = self._piece_encoder_for(texts)
        return encoder.encode(texts) if encoder else EncodedTexts.from_lists(self._encode_with_library(texts))

    @abstractmethod
    def _encode_with_library(self, texts: Sequence[str]) -> list[list[int]]: ...

    @abstractmethod
    def _piece_encoder_for(self, texts: Sequence[str]) -> PieceEncoder | None:
        """A faster encoder with the same ids; None if equality is not guaranteed, or it is slower for these texts."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; an id without a token (a padded row of the embedding) has no text."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """The sha256, in hexadecimal, of everything that determines the ids; it does not depend on the path."""


def load_tokenizer(path: str | Path, end_of_document: str | None = None, *, parse_special: bool = False) -> Tokenizer:
    """Load a tokenizer from a folder, a `tokenizer.json` or a SentencePiece `.model`.

    `end_of_document` is the token that ends a document. The default is the `eos_token` in the `tokenizer_config.json`
    of the same folder, or the EOS of the SentencePiece model. Special-token literals in a text are plain text;
    `parse_special` converts them into their ids, as Megatron does (SentencePiece never does). Raises TokenizerError if
    the tokenizer cannot be loaded or has no such token.
    """
    file = _find_file(Path(path))
    if file.suffix == ".json":
        return HuggingFaceTokenizer(file, end_of_document, parse_special)
    return SentencePieceTokenizer(file, end_of_document)


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`, used with the `tokenizers` library."""

    def __init__(self, path: Path, end_of_document: str | None, parse_special: bool) -> None:
        """Load the file, and its special tokens from `tokenizer_config.json`."""
        from tokenizers import Tokenizer as Engine

        config = path.with_name("tokenizer_config.json")
        names = _read_object(config) if config.is_file() else {}
        try:
            self._engine = Engine.from_file(str(path))
            self._engine.no_truncation()
            self._engine.no_padding()
            self._engine.encode_special_tokens = not parse_special
        except Exception as error:  # the library raises plain Exception
            raise _load_error(path, error) from error
        self.path = path
        self.files = tuple(path.with_name(name) for name in HUGGING_FACE_FILES if path.with_name(name).is_file())
        self.vocabulary_size = max(self._engine.get_vocab(with_added_tokens=True).values()) + 1
        self.end_of_document = self._id(end_of_document or _token_name(names, "eos_token"))
        begin = _token_name(names, "bos_token")
        self.begin_of_document = None if begin is None else self._id(begin)

    def _encode_with_library(self, texts: Sequence[str]) -> list[list[int]]:
        # One text per call uses one core; the fast call does not compute offsets, which are not needed.
        return [self._engine.encode_batch_fast([text], add_special_tokens=False)[0].ids for text in texts]

    def _piece_encoder_for(self, texts: Sequence[str]) -> PieceEncoder | None:
        encoder = self._piece_encoder
        return None if encoder and any(literal in text for literal in self._literals for text in texts) else encoder

    @cached_property
    def _literals(self) -> tuple[str, ...]:
        return hugging_face_pieces.added_literals(self._engine)

    @cached_property
    def _piece_encoder(self) -> PieceEncoder | None:
        return hugging_face_pieces.build_piece_encoder(self._engine)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, with the names of special tokens."""
        return str(self._engine.decode(list(ids), skip_special_tokens=False))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the vocabulary, merges, added tokens, normalizer and pre-tokenizer, in a canonical format."""
        content = _read_object(self.path)
        parts = {name: content.get(name) for name in ID_PARTS}
        model = dict(content["model"])
        if "merges" in model:  # "a b" in older files, ["a", "b"] in newer ones
            model["merges"] = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        canonical = json.dumps(parts | {"model": model}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _id(self, token: str | None) -> int:
        if token is None:
            raise _missing_eod_error(self.path, "no eos_token in a tokenizer_config.json in its folder")
        identifier: int | None = self._engine.token_to_id(token)
        if identifier is None:
            raise _unknown_token_error(self.path, token)
        return identifier


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece `.model`, used with the `sentencepiece` library, which never parses control symbols."""

    def __init__(self, path: Path, end_of_document: str | None) -> None:
        import sentencepiece

        sentencepiece.set_min_log_level(2)  # else every worker prints harmless messages about the model
        try:
            self._model = path.read_bytes()
            self._engine = sentencepiece.SentencePieceProcessor(model_proto=self._model)
        except (OSError, RuntimeError) as error:
            raise _load_error(path, error) from error
        if not self._model:  # the library accepts an empty file
            raise _load_error(path, "an empty file")
        self.path = path
        self.files = (path,)
        self.vocabulary_size = self._engine.get_piece_size()
        self.end_of_document = self._end_of_document(end_of_document)
        begin = self._engine.bos_id()
        self.begin_of_document = begin if begin >= 0 else None

    def _encode_with_library(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._engine.encode(text) for text in texts]

    def _piece_encoder_for(self, texts: Sequence[str]) -> PieceEncoder | None:
        return None if self._piece_encoder and _mostly_cjk(texts) else self._piece_encoder

    @cached_property
    def _piece_encoder(self) -> PieceEncoder | None:
        return sentencepiece_pieces.build_piece_encoder(self._model)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without control symbols."""
        return str(self._engine.decode([identifier for identifier in ids if identifier < self.vocabulary_size]))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the model file."""
        return hashlib.sha256(self._model).hexdigest()

    def _end_of_document(self, token: str | None) -> int:
        identifier = int(self._engine.eos_id() if token is None else self._engine.piece_to_id(token))
        if identifier < 0:
            raise _missing_eod_error(self.path, "the model has no EOS")
        if token is not None and self._engine.id_to_piece(identifier) != token:
            raise _unknown_token_error(self.path, token)
        return identifier


def _mostly_cjk(texts: Sequence[str]) -> bool:
    """Whether `texts` are mostly Chinese, Japanese or Korean: pieces repeat too little, and the library is faster."""
    return sum(len(text.encode()) for text in texts) > CJK_BYTES * sum(map(len, texts))


def _find_file(path: Path) -> Path:
    if path.is_dir():
        models = sorted(path.glob("*.model"))
        candidates = [path / "tokenizer.json", path / "tokenizer.model", *(models if len(models) == 1 else [])]
        content = ", ".join(sorted(file.name for file in path.iterdir())[:10]) or "an empty folder"
    else:
        candidates = [path] if path.suffix in (".json", ".model") else []
        content = f"a file named {path.name}" if path.exists() else "nothing at this path"
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise TokenizerError(
        "no tokenizer found",
        where=path,
        found=content,
        expected="a tokenizer.json, a SentencePiece .model, or a folder that contains one",
        fix="correct the path",
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _load_error(path, error) from error
    if not isinstance(content, dict):
        raise _load_error(path, f"a JSON {type(content).__name__}, not an object")
    return content


def _token_name(names: dict[str, Any], role: str) -> str | None:
    """The token of a role in a tokenizer_config.json: a string, or an object with its `content`."""
    entry = names.get(role)
    name = entry.get("content") if isinstance(entry, dict) else entry
    return name if isinstance(name, str) else None


def _load_error(path: Path, found: object) -> TokenizerError:
    return TokenizerError(
        "the tokenizer cannot be loaded",
        where=path,
        found=found,
        expected="a tokenizer.json of the tokenizers library, or a SentencePiece .model",
        fix="check that the file is complete (a file of a few lines is a git-LFS pointer: get the file itself)",
    )


def _missing_eod_error(path: Path, found: str) -> TokenizerError:
    return TokenizerError(
        "the tokenizer does not define which token ends a document",
        where=path,
        found=found,
        expected="an eos_token, or the name of one",
        fix="name it with --eod-token, or add the tokenizer_config.json to the folder of the tokenizer.json",
    )


def _unknown_token_error(path: Path, token: str) -> TokenizerError:
    return TokenizerError(
        "a special token is not in the vocabulary",
        where=path,
        found=repr(token),
        expected="a token of this vocabulary",
        fix="name another token with --eod-token, or correct the tokenizer_config.json",
    )
