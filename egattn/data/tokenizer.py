"""Byte-level BPE tokenizers: training, loading with checks, and the bytes behind every token."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from egattn.data.manifest import MANIFEST_NAME, TOKENIZER_NAME, read_manifest

END_OF_TEXT = "<|endoftext|>"
# The 256 bytes and the end token.
MIN_VOCAB_SIZE = 257


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, end_token: str = END_OF_TEXT
) -> Tokenizer:
    """Trains a byte-level BPE tokenizer.

    Args:
        texts: Documents to learn from.
        vocab_size: Largest size of the vocabulary, at least 257. A pair of tokens must occur twice
            to be merged, so that a small corpus gives a smaller vocabulary.
        end_token: The token that ends documents.

    Returns:
        The tokenizer; its end token has id 0.
    """
    tokenizer = Tokenizer(models.BPE())
    # Ignored: the library's types have no setters for these.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[end_token],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_tokenizer(path: Path, end_token: str | None = END_OF_TEXT) -> Tokenizer:
    """Loads a `tokenizer.json` and checks that it is byte-level.

    Args:
        path: The file.
        end_token: Special token that it must have; None: whether it has one is known elsewhere.

    Returns:
        The tokenizer, without truncation and padding, which would lose or add tokens, and with
        `encode_special_tokens` set: "<|endoftext|>" written in a text is text, not the token.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no tokenizer, lacks the end token, leaves out merges at random, adds a
            space to texts, or is not byte-level.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a tokenizer.json, got no file at {path}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises no narrower type.
        raise ValueError(f"{path} is not a tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    try:
        if end_token is not None:
            end_token_id(tokenizer, end_token)
        _check_bytes(tokenizer)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return tokenizer


def _check_bytes(tokenizer: Tokenizer) -> None:
    """Raises ValueError for what shows in a tokenizer itself; `check_exact` sees the rest."""
    parts = json.loads(tokenizer.to_str())
    if parts["model"].get("dropout"):
        raise ValueError(
            f"expected a tokenizer that gives a text the same tokens every time, got dropout "
            f"{parts['model']['dropout']}"
        )
    missing = set(pre_tokenizers.ByteLevel.alphabet()) - set(tokenizer.get_vocab())
    if missing:
        raise ValueError(
            f"expected a byte-level tokenizer, got one without {len(missing)} of 256 bytes"
        )
    if not list(_byte_levels(parts["decoder"])):
        raise ValueError("expected a byte-level tokenizer, got one without a ByteLevel decoder")
    if any(part["add_prefix_space"] for part in _byte_levels(parts["pre_tokenizer"])):
        raise ValueError(
            "expected a tokenizer that leaves texts as they are, got one that puts a space before "
            'them: "add_prefix_space": false in its pre_tokenizer ends that'
        )


def _byte_levels(part: Any) -> Iterator[dict[str, Any]]:
    """The ByteLevel parts among those of a pre-tokenizer or decoder."""
    if isinstance(part, dict) and part["type"] == "ByteLevel":
        yield part
    elif isinstance(part, dict) and part["type"] == "Sequence":
        for other in part.get("pretokenizers") or part.get("decoders") or ():
            yield from _byte_levels(other)


def load_tokenizer_of(directory: Path) -> tuple[Tokenizer, int]:
    """Loads the tokenizer of a directory, and says which token ends documents.

    Args:
        directory: Prepared data, or another directory with a tokenizer.json, whose documents end
            with `<|endoftext|>`.
    """
    path = directory / TOKENIZER_NAME
    if not (directory / MANIFEST_NAME).is_file():
        tokenizer = load_tokenizer(path)
        return tokenizer, end_token_id(tokenizer)
    return load_tokenizer(path, end_token=None), read_manifest(directory).end_token_id


def end_token_id(tokenizer: Tokenizer, end_token: str = END_OF_TEXT) -> int:
    """Returns the id of a special token; raises ValueError where a tokenizer has none such."""
    added = tokenizer.get_added_tokens_decoder()
    index = tokenizer.token_to_id(end_token)
    if index is None or index not in added or not added[index].special:
        special = " ".join(token.content for token in added.values() if token.special)
        raise ValueError(
            f"expected the special token {end_token} at the end of documents, got a vocabulary "
            f"with {special or 'no special token'}; --end-token names another one"
        )
    return index


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """Returns the checksum of the tokenizer.json that data prepared with it have."""
    return hashlib.sha256(tokenizer.to_str(pretty=True).encode()).hexdigest()


def bytes_of_tokens(tokenizer: Tokenizer) -> np.ndarray:
    """Counts the UTF-8 bytes that each token of a byte-level tokenizer stands for.

    Args:
        tokenizer: A byte-level tokenizer.

    Returns:
        int32 `[vocab_size]`; 0 for special tokens, which stand for no text, and for unused ids.
    """
    return np.array([len(spelling) for spelling in spellings(tokenizer)], np.int32)


def spellings(tokenizer: Tokenizer) -> list[bytes]:
    """Returns the bytes that each token of a byte-level tokenizer stands for.

    Args:
        tokenizer: A byte-level tokenizer, whose vocabulary spells each byte as one character.

    Returns:
        By the token's id; nothing for special tokens, which stand for no text, and unused ids.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder()
    table = _bytes_of_characters()
    found = [b""] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        if index not in added:
            found[index] = b"".join(table.get(c) or c.encode() for c in token)
        elif not added[index].special:
            # An added token is spelled as itself, not byte by byte.
            found[index] = token.encode()
    return found


def _bytes_of_characters() -> dict[str, bytes]:
    """GPT-2's: printable characters of Latin-1 stand for themselves, those from 256 on for others.

    Reference:
        github.com/openai/gpt-2, src/encoder.py, `bytes_to_unicode`.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = sorted(set(range(256)) - set(printable))
    characters = [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))]
    return dict(zip(characters, map(bytes, zip(printable + others)), strict=True))


def check_exact(text: str, tokens: Sequence[int], spelled: Sequence[bytes], where: str) -> None:
    """Raises ValueError unless the tokens of a document are its bytes, saying where they are not.

    Args:
        text: The document.
        tokens: Its tokens, without an end token.
        spelled: `spellings` of the tokenizer.
        where: The document's name.
    """
    expected, got = text.encode(), b"".join([spelled[token] for token in tokens])
    if got != expected:
        pairs = enumerate(zip(expected, got, strict=False))
        place = next((i for i, (a, b) in pairs if a != b), min(len(expected), len(got)))
        raise ValueError(
            f"{where}: the tokenizer does not give back the text from byte {place} on: expected "
            f"{expected[place : place + 20]!r}, got {got[place : place + 20]!r}"
        )
