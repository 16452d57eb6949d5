"""Sources: which documents each one gives, and what it says when it cannot."""

import json
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from egattn.data import PrepareConfig
from egattn.data.sources import open_source

SUFFIXES = (".txt", ".py", ".jsonl", ".parquet")


def documents(source: str | Path, text_field: str = "text") -> list[bytes]:
    config = PrepareConfig(text_field=text_field, suffixes=SUFFIXES)
    return [document.text for document in open_source(str(source), config)]


class TestFiles:
    def test_text_file_is_one_document_byte_for_byte(self, tmp_path):
        (tmp_path / "a.odd").write_bytes(b"\xef\xbb\xbfone\r\ntwo\xff")
        assert documents(tmp_path / "a.odd") == [b"\xef\xbb\xbfone\r\ntwo\xff"]

    def test_directory_gives_its_files_of_every_kind(self, tmp_path):
        (tmp_path / "deep" / "deeper").mkdir(parents=True)
        (tmp_path / "deep" / "deeper" / "a.txt").write_text("a")
        (tmp_path / "b.jsonl").write_text('{"text": "b"}\n\n{"text": "c"}\n')
        parquet.write_table(pyarrow.table({"text": ["d", "e"]}), tmp_path / "deep" / "d.parquet")
        (tmp_path / "f.bin").write_text("f")
        (tmp_path / ".git").mkdir()
        (tmp_path / ".git" / "g.txt").write_text("g")
        (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
        assert sorted(documents(tmp_path)) == [b"a", b"b", b"c", b"d", b"e"]

    def test_order_is_that_of_no_directory_listing(self, tmp_path):
        for folder in ("one", "two"):
            names = [f"{i:02d}.txt" for i in range(50)]
            (tmp_path / folder).mkdir()
            for name in names if folder == "one" else reversed(names):
                (tmp_path / folder / name).write_text(name)
        one, two = documents(tmp_path / "one"), documents(tmp_path / "two")
        assert one == two
        assert one != sorted(one)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="expected `python`, `hf:NAME` or an existing"):
            documents(tmp_path / "none")
        with pytest.raises(ValueError, match=r"no file in .* ends in one of \.txt, \.py"):
            documents(tmp_path)


class TestJsonl:
    def test_text_comes_from_the_named_field(self, tmp_path):
        records = [{"content": "é\n🙂", "text": "no"}, {"content": None}, {"content": ""}]
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
        assert documents(tmp_path / "a.jsonl", "content") == ["é\n🙂".encode(), b"", b""]

    def test_what_is_not_utf8_is_passed_on_undecodable(self, tmp_path):
        lines = [b'{"text": "caf\xe9"}', rb'{"text": "\ud800"}', b'{"text": "fine"}']
        (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
        *broken, fine = documents(tmp_path / "a.jsonl")
        assert fine == b"fine"
        for document in broken:
            with pytest.raises(UnicodeDecodeError):
                document.decode()

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"content": "a", "stars": 1}', "expected the field 'text', got the fields content, "),
            ("[1]", "expected a JSON object, got list"),
            ('{"text": 5}', "expected text in the field 'text', got int"),
            ('{"text": "a"', "expected one JSON object a line"),
        ],
    )
    def test_unusable_line_is_named(self, tmp_path, line, message):
        (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line)
        with pytest.raises(ValueError, match=rf"a\.jsonl:2: {message}"):
            documents(tmp_path / "a.jsonl")


class TestParquet:
    def test_text_comes_from_the_named_column(self, tmp_path):
        texts = [f"é {i}" for i in range(1000)]
        table = pyarrow.table({"id": range(1002), "content": [*texts, None, ""]})
        parquet.write_table(table, tmp_path / "a.parquet", row_group_size=300)
        expected = [*(text.encode() for text in texts), b"", b""]
        assert documents(tmp_path / "a.parquet", "content") == expected

    def test_missing_column_names_those_present(self, tmp_path):
        parquet.write_table(pyarrow.table({"id": [1], "body": ["a"]}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match="'text', got the fields id, body"):
            documents(tmp_path / "a.parquet")

    def test_other_file_of_that_name(self, tmp_path):
        (tmp_path / "a.parquet").write_text("no table")
        with pytest.raises(ValueError, match=r"a\.parquet is not a Parquet file") as error:
            documents(tmp_path / "a.parquet")
        assert "\n" not in str(error.value)

    def test_without_pyarrow_names_the_extra(self, tmp_path, monkeypatch):
        (tmp_path / "a.parquet").write_text("")
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        with pytest.raises(ValueError, match=r"pip install 'egattn\[parquet\]'"):
            documents(tmp_path / "a.parquet")


class TestHuggingFace:
    def test_streams_the_split_and_revision_asked_for(self, monkeypatch):
        asked = []

        def load_dataset(name, configuration, *, split, revision, streaming):
            asked.append((name, configuration, split, revision, streaming))
            return iter([{"content": "a"}, {"content": "é"}])

        module = types.ModuleType("datasets")
        # Ignored: a module made here has what it is given.
        module.load_dataset = load_dataset  # pyright: ignore[reportAttributeAccessIssue] - a stand-in
        monkeypatch.setitem(sys.modules, "datasets", module)
        assert documents("hf:owner/name", "content") == [b"a", "é".encode()]
        with pytest.raises(
            ValueError, match="hf:owner/name row 1: expected the field 'text', got the"
        ):
            documents("hf:owner/name")
        options: dict[str, Any] = {"hf_config": "raw", "hf_split": "test", "hf_revision": "v2"}
        source = open_source("hf:owner/name", PrepareConfig(**options))
        described = "Hugging Face dataset owner/name, configuration raw, revision v2, split test"
        assert source.description == described
        assert asked[0] == ("owner/name", None, "train", None, True)
        assert asked[-1] == ("owner/name", "raw", "test", "v2", True)

    def test_without_datasets_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(ValueError, match=r"needs datasets.*pip install 'egattn\[hf\]'"):
            open_source("hf:owner/name", PrepareConfig())


class TestPython:
    def test_gives_the_standard_library_and_the_installed_packages(self):
        source = open_source("python", PrepareConfig())
        assert f"Python {sys.version_info.major}.{sys.version_info.minor}." in source.description
        found = {document.text for document in source}
        for module in (json, types, pytest, pyarrow):
            assert Path(str(module.__file__)).read_bytes() in found
        assert not any(b"\0" in document[:100] for document in found)

    def test_leaves_out_the_packages_of_another_environment(self, tmp_path, monkeypatch):
        library, packages = tmp_path / "lib", tmp_path / "environment" / "site-packages"
        for folder in (library, library / "site-packages", library / "__pycache__", packages):
            folder.mkdir(parents=True)
            (folder / "module.py").write_text(str(folder))
        paths = {"stdlib": library, "platstdlib": library}
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(paths.get(name, packages)))
        assert sorted(documents("python")) == sorted(
            str(folder).encode() for folder in (library, packages)
        )
