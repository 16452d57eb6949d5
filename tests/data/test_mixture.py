"""Several sources: each has its share of the examples, whoever asks for which part of them."""

import dataclasses
import importlib
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from egattn.data import (
    Manifest,
    PrepareConfig,
    batches,
    evaluation_batches,
    load_manifest,
    prepare,
    windows_of_batch,
)
from egattn.data.corpus import Spool, spool_corpus
from egattn.data.formats import Document
from egattn.data.prepare import _sample
from egattn.data.windows import _place, _ratios
from tests.data.small import config_of
from tests.data.test_prepare import read_windows
from tests.data.test_rerun import listing

# Letters, so that a token, which is a byte, says where it is from.
LETTERS = ("abc", "xyz")


def mixed(
    folder: Path, out: str, weights: tuple[str, ...] = ("0.7", "0.3"), **options: Any
) -> Manifest:
    for number, letters in enumerate(LETTERS):
        texts = [(letters[i % 3] * (i + 5)) for i in range(60)]
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (folder / f"{number}.jsonl").write_text("".join(lines))
    sources = (f"{folder}/{number}.jsonl:{weight}" for number, weight in enumerate(weights))
    options = {"vocab_size": 257, "validation_fraction": 0.2} | options
    return prepare(config_of(folder, *sources, out=folder / out, **options))


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    mixed(folder, "data")
    return folder / "data"


def letters_of(directory: Path, windows: np.ndarray) -> list[set[str]]:
    vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    spelled = {index: token for token, index in vocabulary.items()}
    return [{spelled[i] for i in window} - {"<|endoftext|>"} for window in windows.tolist()]


def taken(directory: Path, count: int, **options) -> np.ndarray:
    found = batches(
        directory, load_manifest(directory), "train", batch_size=10, context_length=8, seed=3,
        **options,
    )  # fmt: skip
    return np.concatenate([next(found) for _ in range(count)])


def test_no_window_is_of_two_sources(directory):
    manifest = load_manifest(directory)
    for name, split in manifest.splits.items():
        windows = read_windows(directory, manifest, name)
        first, second = split.windows_by_source
        assert len(windows) == first + second == split.windows
        found = letters_of(directory, np.array(windows))
        assert all(letters <= set("abc") for letters in found[:first])
        assert all(letters <= set("xyz") for letters in found[first:])
        assert split.tokens == split.windows * 8 + 2 + split.dropped_tokens


def test_examples_have_the_shares_asked_for_and_every_window_comes(directory):
    manifest = load_manifest(directory)
    first, second = manifest.splits["train"].windows_by_source
    rows = taken(directory, 100)
    found = [letters <= set("abc") for letters in letters_of(directory, rows)]
    for count in (10, 50, 990, 1000):
        assert abs(sum(found[:count]) - 0.7 * count) <= 1
    chosen = [
        window
        for step in range(1, 101)
        for window in windows_of_batch(manifest, "train", batch_size=10, seed=3, step=step)
    ]
    windows = np.array(read_windows(directory, manifest, "train"))
    np.testing.assert_array_equal(windows[chosen], rows)
    # One pass over a source takes each of its windows once.
    for start, count in ((0, first), (first, second)):
        passed = [window for window in chosen if start <= window < start + count][:count]
        assert sorted(passed) == list(range(start, start + count))


def test_one_number_is_the_whole_state_on_any_number_of_processes(directory):
    whole = taken(directory, 20)
    np.testing.assert_array_equal(taken(directory, 13, start_index=70), whole[70:])
    parts = [taken(directory, 20, process_index=i, process_count=2) for i in range(2)]
    together = np.concatenate([part.reshape(20, 5, 9) for part in parts], axis=1)
    np.testing.assert_array_equal(together.reshape(-1, 9), whole)


def test_an_evaluation_of_a_part_is_of_every_source(directory):
    manifest = load_manifest(directory)
    first, second = manifest.splits["validation"].windows_by_source
    rows = {}
    for most in (None, first):
        found = evaluation_batches(
            directory, manifest, batch_size=first, context_length=8, max_windows=most
        )
        rows[most] = np.concatenate([tokens[weight > 0] for tokens, weight in found])
    windows = np.array(read_windows(directory, manifest, "validation"))
    np.testing.assert_array_equal(rows[None], windows)
    of_first = [letters <= set("abc") for letters in letters_of(directory, rows[first])]
    assert len(of_first) == first
    assert abs(sum(of_first) - first * first / (first + second)) <= 1


def test_sources_of_one_size_have_orders_of_their_own(directory):
    manifest = load_manifest(directory)
    split = dataclasses.replace(manifest.splits["train"], windows_by_source=(40, 40))
    manifest = dataclasses.replace(manifest, splits={"train": split})
    chosen = windows_of_batch(manifest, "train", batch_size=200, seed=3, step=1)
    orders = [[w % 40 for w in chosen if w // 40 == source][:40] for source in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(40))
    assert orders[0] != orders[1]


def test_a_source_without_windows_is_named(directory):
    manifest = load_manifest(directory)
    split = dataclasses.replace(manifest.splits["validation"], windows_by_source=(40, 0))
    manifest = dataclasses.replace(manifest, splits={"validation": split})
    with pytest.raises(ValueError, match=r"1\.jsonl has no validation window"):
        windows_of_batch(manifest, "validation", batch_size=2, seed=3, step=1)


def test_other_weights_are_other_data(directory, tmp_path):
    manifest, other = load_manifest(directory), mixed(tmp_path, "data", ("1", "1"))
    assert [source.weight for source in manifest.sources] == ["7/10", "3/10"]
    assert [source.weight for source in other.sources] == ["1/2", "1/2"]
    assert other.splits == manifest.splits
    assert other.sha256 != manifest.sha256


def test_a_budget_is_shared_out(tmp_path):
    manifest = mixed(tmp_path, "data", max_bytes=1000)
    for source, share in zip(manifest.sources, (700, 300), strict=True):
        # Documents of 5, 6, 7, ... letters, up to the one that reaches the share.
        enough = next(n for n in range(60) if sum(range(5, 5 + n)) >= share)
        assert source.fingerprint is not None
        assert source.fingerprint.documents == enough


def test_are_named_one_by_one_on_the_command_line():
    words = "data --source a:0.7 --source b:.3 --vocab-size 300"
    config = tyro.cli(PrepareConfig, args=words.split())
    assert config.weighted_sources == [("a", Fraction(7, 10)), ("b", Fraction(3, 10))]
    assert PrepareConfig(source=("a:0.7",)).weighted_sources == [("a:0.7", 1)]
    assert PrepareConfig().weighted_sources == [("python", 1)]


def test_are_up_to_date_one_by_one(tmp_path, capsys):
    manifest = mixed(tmp_path, "data")
    shown = capsys.readouterr().out
    assert f"1.jsonl: {manifest.splits['train'].windows_by_source[1]} train windows for 3/10" in (
        shown
    )
    (tmp_path / "data").rename(tmp_path / "kept")
    mixed(tmp_path, "kept")
    shown = capsys.readouterr().out
    assert all(f"{i}.jsonl: the source has other times and the same text" in shown for i in (0, 1))


def spooled(folder: Path, sources: list[list[str]]) -> Spool:
    found = [[Document(text.encode(), text) for text in texts] for texts in sources]
    options: dict[str, Any] = {"max_bytes": [None] * len(sources), "advance": lambda _: None}
    return spool_corpus(found, folder, validation_fraction=1e-9, **options).splits["train"]


def test_any_number_of_sources_is_kept_apart(tmp_path):
    spool = spooled(tmp_path, [[str(i)] for i in range(300)])
    assert [(text.text, text.source) for text in spool] == [(str(i), i) for i in range(300)]


def test_tokenizer_learns_from_no_more_than_each_share(tmp_path, monkeypatch):
    module = importlib.import_module("egattn.data.prepare")
    monkeypatch.setattr(module, "_TOKENIZER_TRAINING_BYTES", 8)
    spool = spooled(tmp_path, [["abé", "éé", "more"], ["é" * 9, "even more"]])
    assert list(_sample(spool, [Fraction(5, 8), Fraction(3, 8)])) == ["abé", "", "é"]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (("{0}/0.jsonl:0.7", "{0}/1.jsonl"), r"the weight of each of several sources.*1\.jsonl'"),
        (("{0}/0.jsonl:0", "{0}/1.jsonl:1"), r"the weight of each .*0\.jsonl:0'"),
        (("{0}/0.jsonl:0.7", "{0}/0.jsonl:0.3"), "expected several sources to differ"),
        (("{0}/0.jsonl:0.7", "{0}/few.jsonl:0.3"), r"one train window in file .*few\.jsonl"),
    ],
)
def test_impossible_mixtures_are_refused(directory, tmp_path, sources, message):
    (directory.parent / "few.jsonl").write_text('{"text": "few"}\n')
    named = tuple(source.format(directory.parent) for source in sources)
    with pytest.raises(ValueError, match=message):
        prepare(PrepareConfig(tmp_path / "data", named, context_length=8, vocab_size=257))
    assert listing(tmp_path) == []


@given(
    st.lists(st.fractions(min_value=Fraction(1, 50), max_value=9), min_size=1, max_size=5),
    st.integers(0, 10**12),
)
def test_shares_are_evenly_spread_from_any_place(weights, start):
    shares = [weight / sum(weights) for weight in weights]
    ratios = _ratios(shares)
    first = [_place(start + i, ratios) for i in range(60)]
    counts = {}
    for source, example in first:
        # Examples of a source come one after the other.
        assert example == counts.get(source, example)
        counts[source] = example + 1
    for source, share in enumerate(shares):
        taken = sum(found == source for found, _ in first)
        assert abs(taken - 60 * share) <= len(shares)
