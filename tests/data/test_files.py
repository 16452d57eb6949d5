"""Every file of a source is read, or counted with the reason; what is damaged is named."""

import bz2
import dataclasses
import gzip
import json
import lzma
import os
import re
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from egattn.data import PrepareConfig, prepare
from egattn.data.sources import Source, open_source
from tests.data.small import config_of

SUFFIXES = (".txt", ".jsonl", ".parquet")
COMPRESS = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: pyarrow.compress(content, codec="zstd", asbytes=True),
}
LINES = b'{"text": "one"}\n{"text": "two"}\n'


def read(source: Path, suffixes: tuple[str, ...] = SUFFIXES) -> tuple[list[bytes], Source]:
    opened = open_source(str(source), PrepareConfig(suffixes=suffixes))
    return sorted(document.text for document in opened), opened


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


class TestCounts:
    def test_every_entry_is_read_or_skipped_with_a_reason(self, tmp_path):
        files = {"a.txt": b"a", "b.json": b"{}", "c": b"", ".git/d.txt": b"d", "e/f.txt": b"f"}
        write(tmp_path, files | {"e/__pycache__/g.txt": b"g", "h.JSON": b""})
        os.mkfifo(tmp_path / "pipe.txt")
        (tmp_path / "gone.txt").symlink_to("nowhere")
        found, source = read(tmp_path)
        assert found == [b"a", b"f"]
        assert source.files_read == 2
        assert source.skipped == {
            "ending in .json": 2,
            "without an ending": 1,
            "hidden": 1,
            "directories __pycache__": 1,
            "no regular files": 1,
            "broken links": 1,
        }

    def test_links_that_loop_are_broken(self, tmp_path):
        write(tmp_path, {"a.txt": b"a"})
        (tmp_path / "loop.txt").symlink_to("loop.txt")
        found, source = read(tmp_path)
        assert (found, source.skipped) == ([b"a"], {"broken links": 1})

    def test_endings_have_no_case(self, tmp_path):
        write(tmp_path, {"A.TXT": b"a", "b.JSONL": LINES, "C.Txt.GZ": gzip.compress(b"c")})
        assert read(tmp_path)[0] == [b"a", b"c", b"one", b"two"]
        assert read(tmp_path, (".TXT",))[0] == [b"a", b"c"]

    def test_summary_names_the_longest_and_shows_a_window(self, tmp_path, capsys):
        sizes = [*range(10, 50), 990, 980, 970, 960, 950]
        text = "some words of a text "
        write(tmp_path / "corpus", {f"{n}.txt": (str(n) + text * n)[:n].encode() for n in sizes})
        config = config_of(tmp_path, tmp_path / "corpus")
        manifest = prepare(config)
        found = [(Path(long.where).name, long.bytes) for long in manifest.longest]
        assert found == [(f"{n}.txt", n) for n in (990, 980, 970, 960, 950)]
        shown = capsys.readouterr().out
        assert f"longest documents:\n    990 bytes  {tmp_path}/corpus/990.txt\n    980" in shown
        assert f"first window of train: {manifest.splits['train'].sample!r}" in shown
        assert len(manifest.splits["train"].sample) > 8

    def test_patterns_choose_files_by_their_paths(self, tmp_path):
        names = ("src/a.txt", "src/deep/b.txt", "src/deep/c_test.txt", "old/d.txt", "e.txt")
        write(tmp_path, {name: name.encode() for name in names})
        config = PrepareConfig(suffixes=SUFFIXES, include=("src/*", "e.*"))
        for exclude, left, skipped in [
            ((), names[:3] + names[4:], {"not included": 1}),
            (("*_test.txt",), ("e.txt", *names[:2]), {"not included": 1, "excluded": 1}),
        ]:
            source = open_source(str(tmp_path), dataclasses.replace(config, exclude=exclude))
            assert sorted(document.text.decode() for document in source) == sorted(left)
            assert source.skipped == skipped
        with pytest.raises(ValueError, match=r"no file in .* is included; skipped: 5 not included"):
            open_source(str(tmp_path), dataclasses.replace(config, include=("*.py",)))
        with pytest.raises(ValueError, match=r"expected a directory as source .*e\.txt"):
            open_source(str(tmp_path / "e.txt"), config)

    def test_rare_endings_are_counted_together(self, tmp_path):
        write(tmp_path, {f"{i}.e{i}": b"" for i in range(30)} | {"a.txt": b"a"})
        _, source = read(tmp_path)
        assert len(source.skipped) == 11
        assert sum(source.skipped.values()) == 30

    def test_linked_directories_are_read_once_and_loops_end(self, tmp_path):
        write(tmp_path, {"outside/a.txt": b"a", "outside/b/c.txt": b"c", "corpus/d.txt": b"d"})
        corpus = tmp_path / "corpus"
        (corpus / "one").symlink_to(tmp_path / "outside")
        (corpus / "two").symlink_to(tmp_path / "outside" / "b")
        (tmp_path / "outside" / "loop").symlink_to(corpus)
        (tmp_path / "outside" / "b" / "self").symlink_to(".")
        found, source = read(corpus)
        assert found == [b"a", b"c", b"d"]
        assert source.skipped == {"directories read already": 3}

    def test_a_directory_that_cannot_be_read_is_an_error(self, tmp_path, monkeypatch):
        write(tmp_path, {"a.txt": b"a", "closed/b.txt": b"b"})
        scandir = os.scandir

        def closed(path):
            if str(path).endswith("closed"):
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", closed)
        with pytest.raises(PermissionError, match="closed"):
            read(tmp_path)

    def test_max_bytes_leaves_files_over(self, tmp_path):
        write(tmp_path / "corpus", {f"{i}.txt": f"{i} word ".encode() * 40 for i in range(50)})
        manifest = prepare(config_of(tmp_path, tmp_path / "corpus", max_bytes=3000))
        (source,) = manifest.sources
        assert source.files + source.skipped["beyond max_bytes"] == 50
        assert 0 < source.files < 20
        assert source.stopped_within is None

    def test_max_bytes_within_a_file_is_said(self, tmp_path, capsys):
        lines = [json.dumps({"text": f"{i} word " * 9}) + "\n" for i in range(80)]
        (tmp_path / "a.jsonl").write_text("".join(lines))
        config = config_of(tmp_path, tmp_path / "a.jsonl", max_bytes=3000)
        assert prepare(config).sources[0].stopped_within == str(tmp_path / "a.jsonl")
        assert f"  stopped at max_bytes within {tmp_path}/a.jsonl\n" in capsys.readouterr().out
        config = dataclasses.replace(config, out=tmp_path / "whole", max_bytes=10**6)
        assert prepare(config).sources[0].stopped_within is None


class TestCompressed:
    @pytest.mark.parametrize("suffix", COMPRESS)
    def test_text_and_records(self, tmp_path, suffix):
        content = {"a.txt": b"text\n", "b.jsonl": LINES, "c.bin": b"no"}
        write(tmp_path, {n + suffix: COMPRESS[suffix](text) for n, text in content.items()})
        found, source = read(tmp_path)
        assert found == [b"one", b"text\n", b"two"]
        assert source.skipped == {f"ending in {suffix}": 1}

    @pytest.mark.parametrize("suffix", COMPRESS)
    @pytest.mark.parametrize("kind", [".txt", ".jsonl"])
    def test_damaged_file_is_named(self, tmp_path, suffix, kind):
        content = COMPRESS[suffix](os.urandom(3000) if kind == ".txt" else LINES * 100)
        for damaged in (b"nothing of the kind", content[: len(content) // 2]):
            path = tmp_path / f"a{kind}{suffix}"
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=rf"a{kind}{suffix}.*decompress") as error:
                read(path)
            assert "\n" not in str(error.value)


class TestArchives:
    NAMES = ("a.tar", "a.tar.gz", "a.TGZ", "a.zip", "a.7z", "a.tar.zst")

    @pytest.mark.parametrize("name", NAMES)
    def test_as_sources_are_refused(self, tmp_path, name):
        write(tmp_path, {name: b"a"})
        with pytest.raises(ValueError, match=rf"{name} is an archive of files: unpack it first$"):
            read(tmp_path / name)

    def test_among_other_files_are_skipped(self, tmp_path):
        write(tmp_path, dict.fromkeys(self.NAMES, b"a") | {"b.txt.gz": gzip.compress(b"b")})
        found, source = read(tmp_path)
        assert found == [b"b"]
        assert sum(source.skipped.values()) == len(self.NAMES)
        assert read(tmp_path, (".gz", ".tar"))[1].skipped["archives"] == 3


class TestDamagedParquet:
    @pytest.mark.parametrize("codec", ["none", "snappy", "zstd"])
    def test_is_named_with_the_row_in_one_line(self, tmp_path, codec):
        path = tmp_path / "a.parquet"
        texts = [f"{i} " + "word " * (i % 9) + str(i**7) for i in range(500)]
        options: dict[str, Any] = {"compression": codec, "row_group_size": 256}
        parquet.write_table(pyarrow.table({"text": texts}), path, **options)
        content, messages = path.read_bytes(), []
        # In the second group of rows, its pages' headers, the footer and the beginning.
        second = parquet.ParquetFile(path).metadata.row_group(1).column(0)
        first = second.dictionary_page_offset or second.data_page_offset
        for place in (
            0,
            *range(first, first + 60, 7),
            *range(len(content) - 300, len(content), 17),
        ):
            damaged = bytearray(content)
            damaged[place] ^= 1 << place % 8
            path.write_bytes(damaged)
            try:
                assert len(read(path)[0]) == 500
            except ValueError as error:
                messages.append(str(error))
        assert all(re.match(rf"{path} is (damaged|not a Parq)", message) for message in messages)
        assert any(" is damaged after row 256: " in message for message in messages)
        assert not any("\n" in message for message in messages)


class TestJson:
    def test_lines_are_records_and_other_json_is_text(self, tmp_path):
        text = b'{\n  "text": "no record"\n}\n'
        write(tmp_path, {"a.json": LINES, "b.json": text, "c.json": b'{"name": 1}'})
        assert read(tmp_path, (".json",))[0] == sorted([b"one", b"two", text, b'{"name": 1}'])

    def test_lines_without_the_field_and_arrays_are_refused(self, tmp_path):
        (tmp_path / "a.json").write_bytes(LINES.replace(b"text", b"body"))
        with pytest.raises(ValueError, match=r"a\.json:1: expected the field 'text', got .* body"):
            read(tmp_path / "a.json")
        for array in ([{"text": "one"}], json.dumps([{"text": "one"}], indent=2)):
            content = array if isinstance(array, str) else json.dumps(array)
            (tmp_path / "a.json").write_text(content)
            with pytest.raises(ValueError, match=r"a\.json: expected one JSON object a line, got"):
                read(tmp_path / "a.json")

    def test_lines_of_another_name_are_no_text(self, tmp_path):
        text = b"\n" + LINES
        write(tmp_path, {"a.txt": text, "a.jsonlines": text, "b.txt": b'{"text": 1}\nand text\n'})
        with pytest.raises(ValueError, match=r"a\.txt looks like JSON Lines; name it \.jsonl$"):
            read(tmp_path / "a.txt")
        assert read(tmp_path / "a.jsonlines")[0] == [b"one", b"two"]
        assert len(read(tmp_path / "b.txt")[0]) == 1

    def test_nesting_without_end_is_named(self, tmp_path):
        (tmp_path / "a.jsonl").write_bytes(LINES + b"[" * 200_000 + b"]" * 200_000)
        with pytest.raises(ValueError, match=r"a\.jsonl:3: expected one JSON object a line"):
            read(tmp_path / "a.jsonl")


class TestNotUtf8:
    @pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
    def test_in_parquet_is_counted_with_file_and_row(self, tmp_path, kind, capsys):
        texts = [f"{i} word word word".encode() for i in range(300)]
        texts[270] = b"caf\xe9"
        column = pyarrow.array(texts, pyarrow.large_binary()).cast(pyarrow.binary())
        column = pyarrow.Array.from_buffers(pyarrow.string(), 300, column.buffers())
        if kind != pyarrow.string():
            large = pyarrow.array(texts, pyarrow.large_binary())
            column = pyarrow.Array.from_buffers(kind, 300, large.buffers())
        parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
        manifest = prepare(config_of(tmp_path, tmp_path / "a.parquet"))
        assert manifest.non_utf8 == 1
        assert manifest.non_utf8_places == (f"{tmp_path / 'a.parquet'} row 271",)
        assert "a.parquet row 271" in capsys.readouterr().out

    def test_in_text_and_lines_too(self, tmp_path):
        bad = {f"bad/{i}.txt": b"%d \xff" % i for i in range(20)}
        good = {f"{i}.txt": f"{i} word word word".encode() for i in range(40)}
        source = write(tmp_path / "corpus", bad | good)
        manifest = prepare(config_of(tmp_path, source))
        assert (manifest.non_utf8, len(manifest.non_utf8_places)) == (20, 10)
        assert all("/bad/" in place for place in manifest.non_utf8_places)

    def test_dictionaries_of_strings_are_text(self, tmp_path):
        column = pyarrow.array(["a", "b", "a", None]).dictionary_encode()
        parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
        assert read(tmp_path / "a.parquet")[0] == [b"", b"a", b"a", b"b"]
        parquet.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match="expected text in the field 'text', got int64"):
            read(tmp_path / "a.parquet")


class TestFingerprint:
    @pytest.fixture
    def config(self, tmp_path) -> PrepareConfig:
        write(tmp_path / "corpus", {f"{i}.txt": f"{i} word ".encode() * 9 for i in range(40)})
        return config_of(tmp_path, tmp_path / "corpus")

    def test_of_an_unchanged_source_is_compared(self, config, capsys):
        manifest = prepare(config)
        (source,) = manifest.sources
        assert source.fingerprint is not None
        assert source.fingerprint.files == 40
        capsys.readouterr()
        assert prepare(config) == manifest
        assert "names, sizes and times of the source unchanged" in capsys.readouterr().out

    @pytest.mark.parametrize("change", ["more", "less", "size", "text", "name"])
    def test_of_a_changed_source_is_not_up_to_date(self, config, change):
        prepare(config)
        path = Path(config.source[0], "3.txt")
        if change == "more":
            Path(config.source[0], "more.txt").write_text("more")
        elif change == "less":
            path.unlink()
        elif change == "name":
            path.rename(path.with_name("other.txt"))
        else:
            content = path.read_bytes()
            path.write_bytes(content + b"x" if change == "size" else content.replace(b"w", b"W"))
            os.utime(path, (1, 1))
        with pytest.raises(ValueError, match=r"has changed since .* was prepared: then 40 files"):
            prepare(config)

    def test_of_the_same_text_at_another_time_is_up_to_date(self, config, capsys):
        manifest = prepare(config)
        for path in Path(config.source[0]).iterdir():
            os.utime(path, (1, 1))
        capsys.readouterr()
        assert prepare(config) == manifest
        assert "the source has other times and the same text" in capsys.readouterr().out

    def test_of_installed_packages_may_change(self, config, tmp_path, monkeypatch, capsys):
        write(tmp_path / "library", {f"{i}.py": f"{i} word ".encode() * 9 for i in range(40)})
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "library"))
        config = dataclasses.replace(config, source=())
        manifest = prepare(config)
        write(tmp_path / "library", {"3.py": b"newer", "installed_since.py": b"more"})
        capsys.readouterr()
        assert prepare(config) == manifest
        expected = "installed packages have changed since; the data are as they were"
        assert expected in capsys.readouterr().out

    def test_what_is_gone_is_not_compared(self, config, capsys):
        manifest = prepare(config)
        shutil.rmtree(config.source[0])
        capsys.readouterr()
        assert prepare(config) == manifest
        assert "the source is not here" in capsys.readouterr().out

    def test_of_a_tokenizer_that_was_replaced(self, config, tmp_path):
        prepare(config)
        tokenizer = tmp_path / "tokenizer.json"
        shutil.copy(tmp_path / "data" / "tokenizer.json", tokenizer)
        config = dataclasses.replace(config, out=tmp_path / "other", tokenizer=tokenizer)
        prepare(config)
        tokenizer.write_text(tokenizer.read_text() + "\n")
        with pytest.raises(ValueError, match=r"tokenizer\.json has changed since .* was prepared"):
            prepare(config)
