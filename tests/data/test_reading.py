"""Reading prepared data: the global example index is the whole state, and damage is noticed."""

import collections
import itertools
import json
import random
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from hypothesis import given, settings
from hypothesis import strategies as st

from egattn.data import (
    PrepareConfig,
    batches,
    evaluation_batches,
    load_manifest,
    load_tokenizer,
    prepare,
    shards,
    token_bytes,
)
from egattn.data import windows as windows_module

CONTEXT = 8


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reading")
    rng = random.Random(0)
    texts = [" ".join(f"{rng.randrange(10**6)}" for _ in range(30)) for _ in range(40)]
    (folder / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    config = PrepareConfig(
        out=folder / "data",
        source=(str(folder / "corpus.jsonl"),),
        context_length=CONTEXT,
        vocab_size=300,
        validation_fraction=0.2,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_BYTES", 2000)
        prepare(config)
    return folder / "data"


@pytest.fixture(scope="module")
def windows(directory) -> dict[str, np.ndarray]:
    """All windows of each split in the order of the files, read without the library."""
    found = {}
    for split in ("train", "validation"):
        records = []
        for path in sorted(directory.glob(f"{split}-*.array_record")):
            reader = ArrayRecordReader(str(path))
            records += [np.frombuffer(record, "<u2") for record in reader.read_all()]
            reader.close()
        found[split] = np.stack(records).astype(np.int32)
    return found


def take(directory: Path, count: int, **changes) -> list[np.ndarray]:
    options = {"batch_size": 12, "context_length": CONTEXT, "seed": 0} | changes
    manifest = load_manifest(directory, verify=False)
    return list(itertools.islice(batches(directory, manifest, "train", **options), count))


def multiset(rows: np.ndarray) -> collections.Counter:
    return collections.Counter(row.tobytes() for row in np.ascontiguousarray(rows, np.int32))


class TestBatches:
    def test_have_the_shape_and_type_of_tokens(self, directory):
        (batch,) = take(directory, 1)
        assert batch.shape == (12, CONTEXT + 1)
        assert batch.dtype == np.int32

    def test_every_epoch_shows_every_window_once_in_its_own_order(self, directory, windows):
        count = len(windows["train"])
        assert count > 100
        epochs = np.concatenate(take(directory, 3 * count, batch_size=1)).reshape(3, count, -1)
        for epoch in epochs:
            assert multiset(epoch) == multiset(windows["train"])
        for one, other in itertools.combinations([windows["train"], *epochs], 2):
            assert (one != other).any(axis=1).mean() > 0.9

    def test_seed_chooses_the_order(self, directory):
        one, other, same = (np.concatenate(take(directory, 5, seed=s)) for s in (1, 2, 1))
        assert (one != other).any()
        np.testing.assert_array_equal(one, same)

    @settings(max_examples=10, deadline=None)
    @given(step=st.integers(0, 60), batch_size=st.integers(1, 20))
    def test_started_at_an_index_go_on_as_if_never_interrupted(self, directory, step, batch_size):
        uninterrupted = take(directory, step + 3, batch_size=batch_size)[step:]
        resumed = take(directory, 3, batch_size=batch_size, start_index=step * batch_size)
        np.testing.assert_array_equal(resumed, uninterrupted)

    def test_of_another_size_go_through_the_same_examples(self, directory):
        small, large = take(directory, 12, batch_size=5), take(directory, 3, batch_size=20)
        np.testing.assert_array_equal(np.concatenate(small), np.concatenate(large))

    @pytest.mark.parametrize("process_count", [1, 2, 4])
    def test_of_all_processes_are_the_batch_of_one(self, directory, process_count):
        start, steps = 24, 40
        whole = take(directory, steps, start_index=start)
        parts = [
            take(
                directory,
                steps,
                start_index=start,
                process_index=index,
                process_count=process_count,
            )
            for index in range(process_count)
        ]
        for step, rows in enumerate(zip(*parts, strict=True)):
            assert all(len(part) == 12 // process_count for part in rows)
            np.testing.assert_array_equal(np.concatenate(rows), whole[step])

    @pytest.mark.parametrize("workers", [1, 2, 4])
    def test_the_number_of_workers_changes_nothing(self, directory, workers, monkeypatch):
        expected = take(directory, 40)
        options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=2 * workers)
        monkeypatch.setattr(windows_module, "_READ_OPTIONS", options)
        np.testing.assert_array_equal(take(directory, 40), expected)

    def test_from_one_process_to_two_and_back(self, directory):
        expected, rows = take(directory, 9), []
        for count, first in ((1, 0), (2, 3), (1, 6)):
            parts = [
                take(
                    directory,
                    3,
                    start_index=12 * first,
                    process_index=index,
                    process_count=count,
                )
                for index in range(count)
            ]
            rows += [np.concatenate(part) for part in zip(*parts, strict=True)]
        np.testing.assert_array_equal(rows, expected)

    def test_shorter_context_crops_each_window(self, directory):
        whole, cropped = take(directory, 5), take(directory, 5, context_length=3)
        for full, short in zip(whole, cropped, strict=True):
            np.testing.assert_array_equal(short, full[:, :4])

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"context_length": 9}, "context_length from 1 to 8, .*, got 9"),
            ({"context_length": 0}, "context_length from 1 to 8, .*, got 0"),
            ({"batch_size": 10, "process_count": 4}, "batch_size that 4 processes divide, got 10"),
            ({"batch_size": 0}, "batch_size .*, got 0"),
            ({"process_index": 2, "process_count": 2}, "process_index below 2, got 2"),
            ({"start_index": -1}, "start_index of at least 0, got -1"),
        ],
    )
    def test_bad_request_is_refused_at_once(self, directory, changes, message):
        options = {"batch_size": 12, "context_length": CONTEXT, "seed": 0} | changes
        with pytest.raises(ValueError, match=message):
            batches(directory, load_manifest(directory), "train", **options)

    def test_unknown_split_is_refused(self, directory):
        manifest = load_manifest(directory)
        with pytest.raises(ValueError, match=r"expected a split in \['train', 'validation'\], got"):
            batches(directory, manifest, "test", batch_size=1, context_length=1, seed=0)

    def test_split_without_windows_is_refused(self, directory, tmp_path):
        data = copy_of(directory, tmp_path)
        change_manifest(
            data, lambda values: values["splits"]["validation"].update(windows=0, shards=[])
        )
        with pytest.raises(ValueError, match=r"at least one validation window in .*, got none"):
            evaluation_batches(data, load_manifest(data), batch_size=1, context_length=1)


class TestEvaluationBatches:
    @settings(max_examples=20, deadline=None)
    @given(
        batch_size=st.integers(1, 50),
        context_length=st.integers(1, CONTEXT),
        max_windows=st.none() | st.integers(1, 10_000),
    )
    def test_count_every_window_once_in_order(
        self, directory, windows, batch_size, context_length, max_windows
    ):
        found = evaluation_batches(
            directory,
            load_manifest(directory, verify=False),
            batch_size=batch_size,
            context_length=context_length,
            max_windows=max_windows,
        )
        expected = windows["validation"][:max_windows, : context_length + 1]
        counted = []
        for tokens, weight in found:
            assert tokens.shape == (batch_size, context_length + 1)
            assert tokens.dtype == np.int32
            assert weight.shape == (batch_size,)
            assert weight.dtype == np.float32
            assert set(weight.tolist()) <= {0.0, 1.0}
            assert set(multiset(tokens)) <= set(multiset(expected))
            counted.append(tokens[weight == 1])
        np.testing.assert_array_equal(np.concatenate(counted), expected)
        assert len(counted) == -(-len(expected) // batch_size)

    def test_read_the_training_split_too(self, directory, windows):
        manifest = load_manifest(directory)
        found = evaluation_batches(
            directory, manifest, batch_size=50, context_length=CONTEXT, split="train"
        )
        rows = np.concatenate([tokens[weight == 1] for tokens, weight in found])
        np.testing.assert_array_equal(rows, windows["train"])

    def test_bad_request_is_refused(self, directory):
        manifest = load_manifest(directory)
        for changes, message in [
            ({"batch_size": 0}, "batch_size of at least 1, got 0"),
            ({"max_windows": 0}, "max_windows of at least 1, got 0"),
            ({"context_length": 9}, "context_length from 1 to 8"),
        ]:
            options: dict[str, Any] = {"batch_size": 2, "context_length": CONTEXT} | changes
            with pytest.raises(ValueError, match=message):
                evaluation_batches(directory, manifest, **options)


def copy_of(directory: Path, folder: Path) -> Path:
    """A copy to damage."""
    (folder / "data").mkdir()
    for path in directory.iterdir():
        (folder / "data" / path.name).write_bytes(path.read_bytes())
    return folder / "data"


def change_manifest(directory: Path, change) -> None:
    values = json.loads((directory / "manifest.json").read_text())
    change(values)
    (directory / "manifest.json").write_text(json.dumps(values))


def to_first_format(values: dict[str, Any]) -> None:
    """Takes away what a manifest did not say before documents were packed."""
    values["format_version"] = 1
    for name in ("packing", "sources", "tokenizer_file_sha256", "split_by"):
        del values[name]
    (values["config"]["source"],) = values["config"]["source"]
    del values["non_utf8_places"], values["longest"]
    for name in ("packing", "include", "exclude", "end_token"):
        del values["config"][name]
    for name in ("hf_config", "hf_split", "hf_revision"):
        del values["config"][name]
    for split in values["splits"].values():
        del split["end_tokens"], split["sample"], split["windows_by_source"]


class TestDamage:
    def test_flipped_bit_in_any_file_is_found(self, directory, tmp_path):
        data = copy_of(directory, tmp_path)
        names = sorted(path.name for path in data.iterdir() if path.name != "manifest.json")
        assert len(names) > 5
        for name in names:
            original = (data / name).read_bytes()
            damaged = bytearray(original)
            damaged[random.Random(name).randrange(len(damaged))] ^= 4
            (data / name).write_bytes(damaged)
            with pytest.raises(
                ValueError, match=rf"{name} .*expected sha256 \w{{64}}, got \w{{64}}"
            ):
                load_manifest(data)
            (data / name).write_bytes(original)
        load_manifest(data)

    @pytest.mark.parametrize("verify", [True, False])
    def test_truncated_shard_is_found(self, directory, tmp_path, verify):
        data = copy_of(directory, tmp_path)
        path = sorted(data.glob("train-*"))[1]
        size = path.stat().st_size
        path.write_bytes(path.read_bytes()[:-1])
        expected = rf"{path.name} .*expected {size} bytes, got {size - 1} \(sha256 \w{{64}}\)"
        with pytest.raises(ValueError, match=expected):
            load_manifest(data, verify=verify)

    @pytest.mark.parametrize("verify", [True, False])
    def test_missing_file_is_named(self, directory, tmp_path, verify):
        data = copy_of(directory, tmp_path)
        for name in ("tokenizer.json", "token_bytes.npy", sorted(data.glob("train-*"))[0].name):
            content = (data / name).read_bytes()
            (data / name).unlink()
            with pytest.raises(ValueError, match=f"{name} is missing: expected"):
                load_manifest(data, verify=verify)
            (data / name).write_bytes(content)

    def test_tokenizer_of_other_data_is_found_without_verifying(self, directory, tmp_path):
        data = copy_of(directory, tmp_path)
        tokenizer = load_tokenizer(data / "tokenizer.json")
        tokenizer.add_tokens(["word"])
        tokenizer.save(str(data / "tokenizer.json"))
        with pytest.raises(ValueError, match=r"tokenizer\.json disagrees with manifest\.json: exp"):
            load_manifest(data, verify=False)

    def test_directory_without_manifest_says_what_to_run(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"run `egattn prepare .*` first"):
            load_manifest(tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda v: v.pop("vocab_size"), "missing key 'vocab_size'"),
            (lambda v: v.update(vocab=1), "unknown key 'vocab'; did you mean 'vocab_size'"),
            (lambda v: v.update(format_version=3), "expected format_version 2, got 3"),
            (lambda v: v.update(vocab_size="300"), "vocab_size: expected int, got '300'"),
            (lambda v: v["splits"]["train"].pop("shards"), "train: missing key 'shards'"),
            (lambda v: v["splits"]["train"].update(shards=3), "shards: expected tuple, got 3"),
            (lambda v: v["splits"]["train"]["shards"].append({}), "shards: missing key 'file'"),
        ],
    )
    def test_strange_manifest_is_refused(self, directory, tmp_path, change, message):
        data = copy_of(directory, tmp_path)
        change_manifest(data, change)
        with pytest.raises(ValueError, match=rf"manifest\.json: .*{message}"):
            load_manifest(data)

    def test_of_the_first_format_is_of_the_papers_packing(self, directory, tmp_path):
        data, before = copy_of(directory, tmp_path), load_manifest(directory)
        change_manifest(data, to_first_format)
        manifest = load_manifest(data)
        assert (manifest.packing, manifest.config["packing"]) == ("paper", "paper")
        assert manifest.sha256 == before.sha256
        assert {split.end_tokens for split in manifest.splits.values()} == {None}

    def test_manifest_that_is_no_json_is_refused(self, directory, tmp_path):
        data = copy_of(directory, tmp_path)
        for content in (b'{"format_version": 1', b"\xff", b"[]"):
            (data / "manifest.json").write_bytes(content)
            with pytest.raises(ValueError, match=r"manifest\.json"):
                load_manifest(data)


class TestBytesPerBatch:
    def test_token_bytes_of_the_targets_add_up_to_the_manifests(self, directory):
        manifest, lengths = load_manifest(directory), token_bytes(directory)
        for name, split in manifest.splits.items():
            found = evaluation_batches(
                directory, manifest, batch_size=7, context_length=CONTEXT, split=name
            )
            total = sum((lengths[tokens[:, 1:]].sum(1) * weight).sum() for tokens, weight in found)
            assert total == split.target_bytes
