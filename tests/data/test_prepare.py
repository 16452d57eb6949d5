"""`prepare`: text to checksummed windows, all of them or nothing; by the paper's packing."""

import collections
import json
import random
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from tokenizers import Tokenizer, models, pre_tokenizers

from egattn.data import (
    Manifest,
    PrepareConfig,
    load_tokenizer,
    load_tokenizer_of,
    prepare,
    shards,
    token_bytes,
)

CONTEXT = 16
WORDS = [
    *("def", "return", "self", "[0]", "==", "'a'", "\t", "\r\n", "<|endoftext|>"),
    *("café", "naïve", "中文", "日本語", "🙂", "π"),
]


def document(name: str, words: int = 200) -> str:
    """Text that starts with its name, of every UTF-8 length, the same on every call."""
    rng = random.Random(name)
    return f"# {name}\n" + " ".join(rng.choice(WORDS) for _ in range(words))


def write_corpus(folder: Path, count: int = 40) -> dict[str, str]:
    """`count` distinct documents, and beside them every kind that is left out."""
    texts = {f"{i:03d}.py": document(f"document {i}") for i in range(count)}
    texts["tiny.py"] = "x = 1\n"
    (folder / "package").mkdir(parents=True)
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode())
        (folder / "package" / f"copy_of_{name}").write_bytes(text.encode())
    (folder / "latin.py").write_bytes("# caf\xe9\n".encode("latin-1"))
    (folder / "empty.py").write_bytes(b"")
    (folder / "blank.py").write_bytes(b" \n\t\n")
    (folder / "picture.png").write_bytes(b"not a text file")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "secret.py").write_bytes(document("hidden").encode())
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "cached.py").write_bytes(document("cached").encode())
    return texts


def config_for(folder: Path, **changes) -> PrepareConfig:
    defaults: dict[str, Any] = {
        "out": folder / "data",
        "source": (str(folder / "corpus"),),
        "context_length": CONTEXT,
        # Windows are then of one document each, and known by it.
        "packing": "paper",
        "vocab_size": 400,
        "validation_fraction": 0.25,
    }
    return PrepareConfig(**(defaults | changes))


def bytes_per_character() -> dict[str, int]:
    """GPT-2's table, from its definition: printable Latin-1 stands for itself, the rest follows."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }


def read_windows(directory: Path, manifest: Manifest, split: str) -> list[list[int]]:
    dtype = {"uint16": "<u2", "uint32": "<u4"}[manifest.dtype]
    windows = []
    for shard in manifest.splits[split].shards:
        reader = ArrayRecordReader(str(directory / shard.file))
        windows += [np.frombuffer(r, dtype).tolist() for r in reader.read_all()]
        reader.close()
    return windows


def decode(directory: Path, tokens: list[int]) -> bytes:
    """Tokens to bytes through the byte table, with the end token as the empty string."""
    vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    spelling = {index: token for token, index in vocabulary.items() if token != "<|endoftext|>"}
    table = bytes_per_character()
    return b"".join(bytes(table[c] for c in spelling.get(token, "")) for token in tokens)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    texts = write_corpus(folder / "corpus")
    return folder / "data", prepare(config_for(folder)), texts


class TestWindows:
    def test_decode_to_slices_of_the_source(self, prepared):
        directory, manifest, texts = prepared
        sources = [text.encode() for text in texts.values()]
        for split in ("train", "validation"):
            windows = read_windows(directory, manifest, split)
            assert windows
            for window in windows:
                assert len(window) == CONTEXT + 1
                text = decode(directory, window)
                assert any(text in source for source in sources)

    def test_are_all_full_windows_of_every_document(self, prepared):
        directory, manifest, texts = prepared
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        tokenizer.encode_special_tokens = True
        expected = []
        for text in texts.values():
            tokens = [*tokenizer.encode(text).ids, manifest.end_token_id]
            while len(tokens) > CONTEXT:
                expected.append(tokens[: CONTEXT + 1])
                tokens = tokens[CONTEXT:]
        actual = [w for split in manifest.splits for w in read_windows(directory, manifest, split)]
        assert sorted(actual) == sorted(expected)

    def test_of_documents_around_each_multiple_of_the_context(self, tmp_path):
        # With no room to merge, a token is a byte: n letters make n + 1 tokens with the end.
        texts = [letter * n for letter in "abcdef" for n in range(1, 3 * CONTEXT + 3)]
        lines = [json.dumps({"text": text}) for text in texts]
        (tmp_path / "letters.jsonl").write_text("\n".join(lines))
        source = str(tmp_path / "letters.jsonl")
        manifest = prepare(config_for(tmp_path, source=(source,), vocab_size=257))
        assert manifest.vocab_size == 257
        splits = manifest.splits.values()
        assert sum(s.windows for s in splits) == sum(len(t) // CONTEXT for t in texts)
        assert sum(s.too_short for s in splits) == sum(len(t) < CONTEXT for t in texts)
        assert sum(s.tokens for s in splits) == sum(len(t) + 1 for t in texts)
        # The first letter is no target, and the end token has no bytes.
        used = [len(t) // CONTEXT * CONTEXT for t in texts]
        ended = sum(n == len(t) for n, t in zip(used, texts, strict=True))
        assert sum(s.target_bytes for s in splits) == sum(used) - ended

    def test_end_token_ends_documents_and_never_stands_for_its_own_spelling(self, prepared):
        directory, manifest, texts = prepared
        spelled = sum(text.count("<|endoftext|>") for text in texts.values())
        assert spelled > 100
        for split in manifest.splits:
            for window in read_windows(directory, manifest, split):
                assert manifest.end_token_id not in window[:-1]

    def test_are_cut_into_shards_of_bounded_size(self, prepared, tmp_path, monkeypatch):
        directory, manifest, _ = prepared
        write_corpus(tmp_path / "corpus")
        monkeypatch.setattr(shards, "SHARD_BYTES", 100 * 2 * (CONTEXT + 1))
        small = prepare(config_for(tmp_path))
        for name, split in small.splits.items():
            count = len(split.shards)
            assert count == -(-split.windows // 100)
            assert [shard.file for shard in split.shards] == [
                f"{name}-{i:05d}-of-{count:05d}.array_record" for i in range(count)
            ]
            assert {shard.windows for shard in split.shards[:-1]} <= {100}
            assert read_windows(tmp_path / "data", small, name) == read_windows(
                directory, manifest, name
            )
        assert len(small.splits["train"].shards) > 3


class TestManifest:
    def test_counts_what_was_left_out(self, prepared):
        _, manifest, texts = prepared
        assert manifest.duplicates == len(texts)
        assert manifest.non_utf8 == 1
        assert manifest.empty == 2
        assert sum(split.documents for split in manifest.splits.values()) == len(texts)
        assert sum(split.too_short for split in manifest.splits.values()) == 1

    def test_token_counts_add_up(self, prepared):
        _, manifest, _ = prepared
        for split in manifest.splits.values():
            first_tokens = split.documents - split.too_short
            assert split.tokens == split.windows * CONTEXT + first_tokens + split.dropped_tokens
            assert sum(shard.windows for shard in split.shards) == split.windows
            assert 0 < split.dropped_tokens < split.documents * CONTEXT

    def test_target_bytes_are_the_bytes_of_all_tokens_but_each_windows_first(self, prepared):
        directory, manifest, _ = prepared
        for name, split in manifest.splits.items():
            windows = read_windows(directory, manifest, name)
            assert split.target_bytes == sum(len(decode(directory, w[1:])) for w in windows)

    def test_token_bytes_hold_the_length_of_every_token(self, prepared):
        directory, manifest, _ = prepared
        lengths = token_bytes(directory)
        assert lengths.dtype == np.int32
        expected = [len(decode(directory, [token])) for token in range(manifest.vocab_size)]
        assert lengths.tolist() == expected

    def test_states_the_real_vocabulary(self, prepared, tmp_path):
        directory, manifest, _ = prepared
        vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
        assert manifest.vocab_size == len(vocabulary) <= 400
        (tmp_path / "corpus").mkdir()
        for i in range(20):
            (tmp_path / "corpus" / f"{i}.txt").write_text(f"{i} " + " ".join(string.ascii_letters))
        small = prepare(config_for(tmp_path, vocab_size=60_000))
        assert 257 < small.vocab_size < 400

    def test_does_not_depend_on_where_the_corpus_is(self, prepared, tmp_path):
        _, manifest, _ = prepared
        write_corpus(tmp_path / "corpus")
        again = prepare(config_for(tmp_path))
        assert again.splits == manifest.splits
        assert again.tokenizer_sha256 == manifest.tokenizer_sha256


def write_jsonl(path: Path, names: list[str], field: str = "text") -> None:
    lines = [json.dumps({field: document(name, 30), "stars": 3}) for name in names]
    path.write_text("\n".join(lines) + "\n")


def first_lines(directory: Path, manifest: Manifest, split: str) -> set[bytes]:
    """The documents of a split, known by their first lines."""
    texts = [decode(directory, window) for window in read_windows(directory, manifest, split)]
    return {text.split(b"\n")[0] for text in texts if text.startswith(b"# ")}


class TestSplit:
    def test_shares_no_document(self, prepared):
        directory, manifest, texts = prepared
        train, validation = (first_lines(directory, manifest, s) for s in ("train", "validation"))
        assert not train & validation
        assert train | validation == {t.split("\n")[0].encode() for t in texts.values()} - {
            b"x = 1"
        }

    def test_never_moves_a_document_when_the_corpus_grows(self, tmp_path):
        names = [f"document {i}" for i in range(120)]
        sides = []
        for count in (60, 120):
            source, out = tmp_path / f"{count}.jsonl", tmp_path / f"{count}"
            write_jsonl(source, names[:count])
            manifest = prepare(config_for(tmp_path, source=(str(source),), out=out))
            sides.append([first_lines(out, manifest, s) for s in ("train", "validation")])
        (small_train, small_validation), (train, validation) = sides
        assert small_train < train
        assert small_validation < validation

    def test_has_about_the_share_asked_for(self, tmp_path):
        source = tmp_path / "many.jsonl"
        write_jsonl(source, [f"document {i}" for i in range(1500)])
        manifest = prepare(config_for(tmp_path, source=(str(source),)))
        deviation = (0.25 * 0.75 / 1500) ** 0.5
        assert abs(manifest.splits["validation"].documents / 1500 - 0.25) < 4 * deviation

    def test_tokenizer_learns_from_training_documents_only(self, tmp_path):
        # One word per document, repeated: a word becomes a token only if its document was read.
        words = ["".join(random.Random(i).choices("abcdefghij", k=7)) for i in range(40)]
        lines = [json.dumps({"text": " ".join([word] * 30)}) for word in words]
        (tmp_path / "words.jsonl").write_text("\n".join(lines))
        source = str(tmp_path / "words.jsonl")
        manifest = prepare(config_for(tmp_path, source=(source,), vocab_size=60_000))
        vocabulary = json.loads((tmp_path / "data/tokenizer.json").read_text())["model"]["vocab"]
        learned = sum(f"Ġ{word}" in vocabulary for word in words)
        assert learned == manifest.splits["train"].documents < len(words)


class TestMaxBytes:
    def test_stops_at_the_document_that_reaches_it(self, prepared, tmp_path):
        texts = write_corpus(tmp_path / "corpus")
        manifest = prepare(config_for(tmp_path, max_bytes=20_000))
        kept = [first_lines(tmp_path / "data", manifest, split) for split in manifest.splits]
        sizes = {t.split("\n")[0].encode(): len(t.encode()) for t in texts.values()}
        total = sum(sizes[line] for line in set.union(*kept))
        assert 20_000 <= total + len(b"x = 1\n") < 20_000 + max(sizes.values()) + 6
        assert total < sum(sizes.values()) / 2

    def test_takes_files_from_all_over_the_corpus(self, tmp_path):
        for package in "abcdefgh":
            (tmp_path / "corpus" / package).mkdir(parents=True)
            for i in range(20):
                name = f"{package}{i}"
                (tmp_path / "corpus" / package / f"{i}.py").write_text(document(name, 30))
        size = sum(path.stat().st_size for path in (tmp_path / "corpus").rglob("*.py"))
        manifest = prepare(config_for(tmp_path, max_bytes=size // 4))
        lines = set.union(*(first_lines(tmp_path / "data", manifest, s) for s in manifest.splits))
        assert {line[2:3] for line in lines} == {b"%c" % letter for letter in b"abcdefgh"}


class TestTokenizer:
    def test_existing_one_is_used_as_it_is(self, prepared, tmp_path):
        directory, manifest, _ = prepared
        existing = Tokenizer.from_file(str(directory / "tokenizer.json"))
        existing.enable_truncation(4)
        existing.enable_padding(length=50)
        existing.save(str(tmp_path / "existing.json"))
        write_corpus(tmp_path / "corpus")
        config = config_for(tmp_path, tokenizer=tmp_path / "existing.json", vocab_size=8192)
        again = prepare(config)
        assert again.vocab_size == manifest.vocab_size
        assert again.splits == manifest.splits

    def test_end_token_of_another_name(self, tmp_path):
        write_corpus(tmp_path / "corpus")
        options: dict[str, Any] = {"packing": "concat", "end_token": "<eos>"}
        manifest = prepare(config_for(tmp_path, **options))
        path = tmp_path / "data" / "tokenizer.json"
        again = prepare(config_for(tmp_path, out=tmp_path / "again", tokenizer=path, **options))
        assert again.splits == manifest.splits
        assert load_tokenizer(path, "<eos>").token_to_id("<|endoftext|>") is None
        for directory in (tmp_path / "data", tmp_path / "again"):
            assert load_tokenizer_of(directory)[1] == manifest.end_token_id
        # Without a manifest nothing says which token it is.
        (tmp_path / "data" / "manifest.json").unlink()
        with pytest.raises(ValueError, match=r"expected the special token <\|endoftext\|> .*<eos>"):
            load_tokenizer_of(tmp_path / "data")

    def test_large_vocabulary_is_stored_in_32_bits(self, prepared, tmp_path):
        directory, _, _ = prepared
        existing = Tokenizer.from_file(str(directory / "tokenizer.json"))
        existing.add_tokens([f"<{i}é>" for i in range(66_000)])
        existing.save(str(tmp_path / "large.json"))
        (tmp_path / "corpus").mkdir()
        for i in range(20):
            (tmp_path / "corpus" / f"{i}.txt").write_text(f"{i} " + "<65999é>" * 40)
        manifest = prepare(config_for(tmp_path, tokenizer=tmp_path / "large.json"))
        assert manifest.dtype == "uint32"
        last = manifest.vocab_size - 1
        windows = read_windows(tmp_path / "data", manifest, "train")
        assert all(window[-2] == last for window in windows)
        assert token_bytes(tmp_path / "data")[last] == len("<65999é>".encode())
        split = manifest.splits["train"]
        counts = collections.Counter(token for window in windows for token in window[1:])
        assert split.target_bytes == counts[last] * 9 + sum(
            len(decode(tmp_path / "data", [token])) * n for token, n in counts.items()
        )

    def test_loaded_one_takes_the_end_tokens_spelling_for_text(self, prepared):
        directory, manifest, _ = prepared
        tokenizer = load_tokenizer(directory / "tokenizer.json")
        assert manifest.end_token_id not in tokenizer.encode("a <|endoftext|> b").ids

    def test_unusable_ones_are_refused(self, prepared, tmp_path):
        (tmp_path / "corpus").mkdir()
        (tmp_path / "corpus" / "a.txt").write_text("text")
        original = (prepared[0] / "tokenizer.json").read_text()
        words = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "[UNK]": 1}, unk_token="[UNK]"))
        words.add_special_tokens(["<|endoftext|>"])
        prefixing = Tokenizer.from_str(original)
        # Ignored: the stubs of tokenizers lack the setter.
        prefixing.pre_tokenizer = pre_tokenizers.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        split = Tokenizer.from_str(original)
        # As above.
        split.pre_tokenizer = pre_tokenizers.Sequence([prefixing.pre_tokenizer])  # pyright: ignore[reportAttributeAccessIssue]
        ordinary = original.replace('"special": true', '"special": false')
        for content, message in [
            ("{}", "is not a tokenizer"),
            (original.replace("<|endoftext|>", "<|end|>"), "vocabulary with <|end|>; --end-token"),
            (ordinary, "expected the special token <|endoftext|> .* with no special token"),
            (words.to_str(), "without 256 of 256 bytes"),
            (original.replace('"dropout": null', '"dropout": 0.1'), "same tokens every time"),
            (prefixing.to_str(), "puts a space before them"),
            (split.to_str(), "puts a space before them"),
            (json.dumps(json.loads(original) | {"decoder": None}), "without a ByteLevel decoder"),
        ]:
            (tmp_path / "tokenizer.json").write_text(content)
            with pytest.raises(ValueError, match=message.replace("|", r"\|")):
                prepare(config_for(tmp_path, tokenizer=tmp_path / "tokenizer.json"))
            assert not (tmp_path / "data").exists()
        with pytest.raises(FileNotFoundError, match=r"expected a tokenizer\.json"):
            prepare(config_for(tmp_path, tokenizer=tmp_path / "none.json"))
