"""The three packings: what windows hold, counted from the files by code of its own."""

import functools
import itertools
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from egattn.data import Manifest, load_tokenizer
from tests.data import small
from tests.data.test_prepare import bytes_per_character, read_windows

PACKINGS = ("concat", "segments", "paper")
# A token is a byte.
prepared = functools.partial(small.prepared, vocab_size=257)


def spelled(directory: Path, end: int) -> dict[int, bytes]:
    """The bytes of every token; the end token's are none."""
    vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    table = bytes_per_character()
    return {
        index: b"" if index == end else bytes(table[c] for c in token)
        for token, index in vocabulary.items()
    }


def stream(windows: list[list[int]]) -> list[int]:
    """Windows laid end to end, the token that each two share taken once."""
    for one, other in itertools.pairwise(windows):
        assert one[-1] == other[0]
    return [*windows[0][:1], *(token for window in windows for token in window[1:])]


def documents_of(tokens: list[int], end: int, spelling: dict[int, bytes]) -> list[bytes]:
    """Documents by their end tokens, and last what came after the last one."""
    found = [b""]
    for token in tokens:
        if token == end:
            found.append(b"")
        else:
            found[-1] += spelling[token]
    return found


TEXTS = [f"{i}: " + "word " * (i % 7) + "é🙂" * (i % 3) for i in range(60)]


class TestConcat:
    @pytest.mark.parametrize("packing", ["concat", "segments"])
    def test_windows_are_the_corpus_but_for_the_tail(self, tmp_path, packing):
        directory, manifest = prepared(tmp_path, TEXTS, packing=packing)
        end = manifest.end_token_id
        spelling, seen = spelled(directory, end), []
        for name, split in manifest.splits.items():
            tokens = stream(read_windows(directory, manifest, name))
            assert tokens.count(end) == split.end_tokens
            assert len(tokens) + split.dropped_tokens == split.tokens
            assert split.dropped_tokens < manifest.context_length
            *whole, _ = documents_of(tokens, end, spelling)
            assert {text.decode() for text in whole} <= set(TEXTS)
            seen += whole
        # The tail of a split holds fewer tokens than a window, and each document ten or more.
        assert len(seen) == len(set(seen)) >= len(TEXTS) - 2

    def test_every_document_ends_where_nothing_is_dropped(self, tmp_path):
        directory, manifest = prepared(tmp_path, TEXTS, context_length=1)
        end = manifest.end_token_id
        spelling, found = spelled(directory, end), []
        for name, split in manifest.splits.items():
            assert (split.dropped_tokens, split.too_short) == (0, 0)
            tokens = stream(read_windows(directory, manifest, name))
            assert tokens.count(end) == split.end_tokens == split.documents
            *whole, rest = documents_of(tokens, end, spelling)
            assert rest == b""
            found += whole
        assert sorted(found) == sorted(text.encode() for text in TEXTS)

    def test_is_the_default_and_segments_are_the_same_windows(self, tmp_path):
        default, manifest = prepared(tmp_path, TEXTS)
        segments, other = prepared(tmp_path, TEXTS, packing="segments")
        assert (manifest.packing, other.packing) == ("concat", "segments")
        for name in manifest.splits:
            windows = read_windows(default, manifest, name)
            assert windows == read_windows(segments, other, name)
        assert manifest.splits == other.splits
        # What is learned from them is not the same: no run goes on with the other.
        assert manifest.sha256 != other.sha256

    def test_windows_do_not_depend_on_the_tokenizers_batches(self, tmp_path, monkeypatch):
        _, manifest = prepared(tmp_path, TEXTS)
        monkeypatch.setattr("egattn.data.shards.BATCH_BYTES", 50)
        (tmp_path / "other").mkdir()
        _, other = prepared(tmp_path / "other", TEXTS)
        assert other.splits == manifest.splits


class TestPaper:
    def test_keeps_few_ends_of_short_documents(self, tmp_path):
        kept = {}
        for packing in ("paper", "concat"):
            _, manifest = prepared(tmp_path, TEXTS, packing=packing, context_length=32)
            splits = manifest.splits.values()
            kept[packing] = sum(split.end_tokens or 0 for split in splits)
        assert kept["paper"] < len(TEXTS) / 4
        assert kept["concat"] >= len(TEXTS) - 4


def check(directory: Path, manifest: Manifest, texts: list[str]) -> None:
    """Decoded windows are the documents, up to the tokens that the manifest says are dropped."""
    end, length = manifest.end_token_id, manifest.context_length
    tokenizer, found, ends, dropped = load_tokenizer(directory / "tokenizer.json"), [], 0, 0
    spelling = spelled(directory, end)
    encoded = {text: [*tokenizer.encode(text).ids, end] for text in texts}
    for text, tokens in encoded.items():
        assert b"".join(spelling[token] for token in tokens) == text.encode()
    for name, split in manifest.splits.items():
        windows = read_windows(directory, manifest, name)
        assert all(len(window) == length + 1 for window in windows)
        if manifest.packing == "paper":
            found += windows
        else:
            tokens = stream(windows)
            *whole, rest = documents_of(tokens, end, spelling)
            found += whole
            if rest:
                assert any(text.encode().startswith(rest) for text in texts)
            ends += tokens.count(end)
        dropped += split.dropped_tokens
    splits = manifest.splits.values()
    assert sum(s.documents for s in splits) == len(texts)
    if manifest.packing == "paper":
        cuts = [t[i : i + length + 1] for t in encoded.values() for i in range(0, len(t), length)]
        expected = [window for window in cuts if len(window) == length + 1]
        assert sorted(found) == sorted(expected)
    else:
        assert sum(s.end_tokens or 0 for s in splits) == ends == len(found)
        assert set(found) <= {text.encode() for text in texts}
        assert len(found) == len(set(found))
        missing = [t for text, t in encoded.items() if text.encode() not in found]
        # What is dropped begins within a document that is not whole: no more is missing.
        assert dropped <= sum(map(len, missing)) <= dropped + 2 * max(map(len, encoded.values()))
    tokens = sum(map(len, encoded.values()))
    assert sum(s.tokens for s in splits) == tokens


# Enough documents that both splits have some; white space alone is left out, equal ones are once.
documents = st.lists(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(
        lambda text: text.strip()
    ),
    min_size=12,
    max_size=40,
    unique=True,
)


@pytest.mark.parametrize("packing", PACKINGS)
@settings(max_examples=15)
@given(texts=documents, vocab_size=st.integers(257, 400), context_length=st.integers(1, 40))
def test_windows_are_the_documents(packing, texts, vocab_size, context_length):
    with tempfile.TemporaryDirectory() as folder:
        try:
            directory, manifest = prepared(
                Path(folder),
                texts,
                packing=packing,
                vocab_size=vocab_size,
                context_length=context_length,
            )
        except ValueError as error:
            # Said, not lost: a split that would be empty.
            assume("expected at least one" not in str(error))
            raise
        assert manifest.packing == packing
        check(directory, manifest, texts)
