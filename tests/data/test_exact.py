"""No byte is lost without a word: tokenizers that lose some, and a single document cut in two."""

import errno
import itertools
import json
import os
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, normalizers

from egattn.data import prepare
from egattn.data.tokenizer import check_exact, spellings, train_tokenizer
from egattn.run import staging
from tests.data.small import config_of, prepared
from tests.data.test_packing import documents_of, spelled, stream
from tests.data.test_prepare import read_windows

TEXTS = [f"line {i}: naïve 🙂 words\n\n  and more\n" for i in range(30)]


class TestExact:
    def test_spellings_are_the_bytes_of_any_text(self):
        tokenizer = train_tokenizer(TEXTS * 2, 400)
        found = spellings(tokenizer)
        assert {spelling for spelling in found if len(spelling) == 1} == {
            bytes([byte]) for byte in range(256)
        }
        text = "".join(map(chr, range(1, 0x800))) + "<|endoftext|> 🙂\r\n\t"
        check_exact(text, tokenizer.encode(text).ids, found, "a text")

    @pytest.mark.parametrize(
        ("normalizer", "texts", "place"),
        [
            (normalizers.Replace("qu", "k"), ["fine"] * 3 + ["a quick one"], 2),
            (normalizers.Replace(Regex("z"), "s"), ["fine"] * 3 + ["lazy"], 2),
            (normalizers.Strip(), ["fine"] * 3 + ["ends with a blank "], 17),
        ],
    )
    def test_first_loss_names_document_and_place(self, tmp_path, normalizer, texts, place):
        tokenizer = train_tokenizer(TEXTS, 300)
        # Ignored: the stubs of tokenizers lack the setter.
        tokenizer.normalizer = normalizer  # pyright: ignore[reportAttributeAccessIssue]
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        texts = [f"{i} {text}" if text == "fine" else text for i, text in enumerate(texts)]
        with pytest.raises(ValueError, match=rf"corpus\.jsonl:4: .* from byte {place} on") as error:
            prepared(tmp_path, texts + TEXTS, tokenizer=tmp_path / "tokenizer.json")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "data").exists()

    @pytest.mark.parametrize("side", ["lstrip", "rstrip"])
    def test_added_tokens_that_eat_blanks(self, tmp_path, side):
        tokenizer = train_tokenizer(TEXTS, 300)
        tokenizer.add_tokens([AddedToken("<tag>", **{side: True})])
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(ValueError, match=r"corpus\.jsonl:1: the tokenizer does not give back"):
            prepared(tmp_path, ["a <tag> b", *TEXTS], tokenizer=tmp_path / "tokenizer.json")

    def test_an_end_token_that_text_can_give(self, tmp_path):
        tokenizer = json.loads(train_tokenizer(["in " * 9] * 9, 300).to_str())
        # What merging "i" and "n" gives.
        index = tokenizer["model"]["vocab"]["in"]
        tokenizer["added_tokens"][0] |= {"id": index, "content": "in"}
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
        with pytest.raises(ValueError, match=r"corpus\.jsonl:1: the tokenizer does not give back"):
            prepared(tmp_path, TEXTS, tokenizer=tmp_path / "tokenizer.json", end_token="in")


class TestOneDocument:
    @pytest.mark.parametrize("packing", ["concat", "paper"])
    def test_is_cut_by_position_with_a_gap(self, tmp_path, packing, capsys):
        text = "".join(TEXTS)
        directory, manifest = prepared(tmp_path, [text], packing=packing)
        assert manifest.split_by == "position"
        assert "one document, cut by position: the first 9 tokens" in capsys.readouterr().out
        end = manifest.end_token_id
        spelling = spelled(directory, end)
        train, validation = (
            b"".join(documents_of(stream(read_windows(directory, manifest, name)), end, spelling))
            for name in ("train", "validation")
        )
        assert text.encode().startswith(train)
        cut = text.encode().index(validation)
        used, gap = manifest.splits["train"], manifest.splits["validation"]
        assert 0.6 < len(train) / len(text.encode()) < 0.75
        assert cut > len(train)
        # All that lies between them is dropped, and counted: a window and more.
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        between = tokenizer.encode(text.encode()[len(train) : cut].decode()).ids
        assert manifest.context_length < len(between)
        assert gap.dropped_tokens >= manifest.context_length + 1
        for split in (used, gap):
            assert (
                split.tokens == split.windows * manifest.context_length + 1 + split.dropped_tokens
            )

    @pytest.mark.parametrize("text", ["".join(TEXTS) * 20, "one line of words " * 300 + "\n"])
    def test_that_is_a_text_file(self, tmp_path, text):
        (tmp_path / "one.txt").write_text(text)
        config = config_of(tmp_path, tmp_path / "one.txt", validation_fraction=0.02)
        manifest = prepare(config)
        assert {split.documents for split in manifest.splits.values()} == {1}
        assert prepare(config) == manifest

    def test_that_is_too_short_says_so(self, tmp_path):
        with pytest.raises(ValueError, match="at least one validation window"):
            prepared(tmp_path, ["a few words"])


class TestPlace:
    """Directories that no other one can take the place of."""

    def test_current_directory_is_filled_and_stays(self, tmp_path, monkeypatch):
        (tmp_path / "data").mkdir()
        monkeypatch.chdir(tmp_path / "data")
        inode = os.stat(".").st_ino
        directory, manifest = prepared(tmp_path, TEXTS)
        assert os.stat(".").st_ino == inode
        names = {"manifest.json", "tokenizer.json", "token_bytes.npy"}
        names |= {shard.file for split in manifest.splits.values() for shard in split.shards}
        assert set(os.listdir(".")) == names
        assert prepared(tmp_path, TEXTS)[1].sha256 == manifest.sha256
        assert directory.samefile(".")

    def test_mount_point(self, tmp_path, monkeypatch):
        (tmp_path / "data").mkdir()
        monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "data")
        replace = os.replace

        def busy(source, target):
            assert Path(target).name != "data"
            replace(source, target)

        monkeypatch.setattr(os, "replace", busy)
        prepared(tmp_path, TEXTS)
        assert (tmp_path / "data" / "manifest.json").is_file()

    @pytest.mark.parametrize("failing", [(2,), range(2, 99)])
    def test_error_among_the_moves_is_no_data_and_is_repeated(self, tmp_path, monkeypatch, failing):
        (tmp_path / "data").mkdir()
        monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "data")
        replace, calls = os.replace, itertools.count()

        def broken(source, target):
            if next(calls) in failing:
                raise OSError(errno.EIO, "Input/output error", str(source))
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", broken)
            with pytest.raises(OSError, match="Input/output"):
                prepared(tmp_path, TEXTS)
        assert not (tmp_path / "data" / "manifest.json").exists()
        # What cannot be moved back either is left, and known.
        left = len(os.listdir(tmp_path / "data"))
        assert left == (0 if failing == (2,) else 3)
        prepared(tmp_path, TEXTS)
        assert not (tmp_path / "data" / ".partial").exists()

    @pytest.mark.parametrize(("moves", "later"), [(0, True), (1, False), (3, True), (4, False)])
    def test_killed_among_the_moves_is_no_data_and_is_repeated(
        self, tmp_path, monkeypatch, moves, later
    ):
        (tmp_path / "data").mkdir()
        monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "data")
        replace, done = os.replace, []

        def killed(source, target):
            if len(done) == moves:
                raise KeyboardInterrupt
            done.append(replace(source, target))

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            # As of a process that is gone: nothing tidies up.
            patch.setattr(staging.shutil, "rmtree", lambda *_, **__: None)
            with pytest.raises(KeyboardInterrupt):
                prepared(tmp_path, TEXTS)
        assert not (tmp_path / "data" / "manifest.json").exists()
        # Then it may be a directory like others.
        monkeypatch.setattr(Path, "is_mount", lambda path: later and path.name == "data")
        _, manifest = prepared(tmp_path, TEXTS)
        assert not (tmp_path / "data" / ".partial").exists()
        assert prepared(tmp_path, TEXTS)[1].sha256 == manifest.sha256
