"""`prepare` as a command: run again, killed, given nonsense."""

import fcntl
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from egattn.data import PrepareConfig, prepare
from tests.data.test_prepare import config_for, write_corpus, write_jsonl
from tests.data.test_reading import change_manifest, to_first_format


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class TestRerun:
    def test_changes_nothing(self, tmp_path, capsys):
        write_corpus(tmp_path / "corpus")
        first = prepare(config_for(tmp_path))
        times = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in tmp_path.rglob("*")}
        capsys.readouterr()
        assert prepare(config_for(tmp_path)) == first
        assert "up to date" in capsys.readouterr().out
        assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in tmp_path.rglob("*")} == times

    def test_finds_a_damaged_shard(self, tmp_path):
        write_corpus(tmp_path / "corpus")
        manifest = prepare(config_for(tmp_path))
        path = tmp_path / "data" / manifest.splits["train"].shards[0].file
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path.name}.* expected sha256 \w+, got \w+"):
            prepare(config_for(tmp_path))

    def test_of_another_config_names_what_differs(self, tmp_path):
        write_corpus(tmp_path / "corpus")
        prepare(config_for(tmp_path))
        before = listing(tmp_path)
        with pytest.raises(
            ValueError, match=r"context_length 16 \(now 8\), vocab_size 400 \(now 300\); choose"
        ):
            prepare(config_for(tmp_path, context_length=8, vocab_size=300))
        assert listing(tmp_path) == before

    def test_of_data_of_the_first_format(self, tmp_path, capsys):
        write_corpus(tmp_path / "corpus")
        first = prepare(config_for(tmp_path))
        change_manifest(tmp_path / "data", to_first_format)
        capsys.readouterr()
        again = prepare(config_for(tmp_path))
        assert (again.sha256, again.packing) == (first.sha256, "paper")
        assert "up to date, checksums verified; the source is not compared" in (
            capsys.readouterr().out
        )
        with pytest.raises(ValueError, match=r"packing 'paper' \(now 'concat'\); choose another"):
            prepare(config_for(tmp_path, packing="concat"))

    def test_works_after_the_directory_was_moved(self, tmp_path):
        write_corpus(tmp_path / "corpus")
        first = prepare(config_for(tmp_path))
        (tmp_path / "data").rename(tmp_path / "moved")
        assert prepare(config_for(tmp_path, out=tmp_path / "moved")) == first


# Kills its own process at the first operation on a file of the unfinished directory that, written
# out, contains the given word.
KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from egattn.data import PrepareConfig, prepare

folder, word = Path(sys.argv[1]), sys.argv[2]

def hook(event, arguments):
    described = " ".join(map(str, arguments))
    if event in ("open", "os.rename") and ".partial" in described and word in described:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
prepare(PrepareConfig(out=folder / "data", source=(str(folder / "corpus"),), context_length=16,
                      vocab_size=400, validation_fraction=0.25))
"""


class TestInterruption:
    # The last is the renaming of the whole directory, complete but for its name.
    @pytest.mark.parametrize(
        "word", [".lock", "documents-train", "validation-00000", "manifest.json", ".partial /"]
    )
    def test_killed_run_leaves_nothing_complete_and_is_repeated(self, tmp_path, word):
        write_corpus(tmp_path / "corpus")
        before = set(listing(tmp_path))
        run = subprocess.run(
            [sys.executable, "-c", KILLED_RUN, str(tmp_path), word],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
        )
        assert run.returncode == -signal.SIGKILL, run.stderr
        assert not (tmp_path / "data").exists()
        assert (tmp_path / ".data.partial").exists()
        (tmp_path / ".data.partial" / "leftover").mkdir()
        manifest = prepare(config_for(tmp_path))
        expected = {"manifest.json", "tokenizer.json", "token_bytes.npy"}
        expected |= {s.file for split in manifest.splits.values() for s in split.shards}
        assert set(listing(tmp_path)) - before == {"data", *(f"data/{name}" for name in expected)}

    def test_error_halfway_leaves_nothing(self, tmp_path):
        write_jsonl(tmp_path / "corpus", [f"document {i}" for i in range(50)])
        source = (tmp_path / "corpus").rename(tmp_path / "corpus.jsonl")
        source.write_text(source.read_text() + "{broken\n")
        with pytest.raises(ValueError, match=r"corpus\.jsonl:51: expected one JSON object"):
            prepare(config_for(tmp_path, source=(str(source),)))
        assert listing(tmp_path) == ["corpus.jsonl"]

    def test_two_runs_at_once_are_refused(self, tmp_path):
        write_corpus(tmp_path / "corpus")
        (tmp_path / ".data.partial").mkdir()
        (tmp_path / ".data.partial" / "half").write_text("the other run's work")
        with (tmp_path / ".data.partial" / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(OSError, match="another process"):
                prepare(config_for(tmp_path))
        assert (tmp_path / ".data.partial" / "half").exists()

    def test_full_disk_is_an_os_error(self, tmp_path):
        write_corpus(tmp_path / "corpus")
        tokenizer = tmp_path / "tokenizer.json"
        prepare(config_for(tmp_path))
        (tmp_path / "data" / "tokenizer.json").rename(tokenizer)
        before = listing(tmp_path)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Above the text and the tokenizer, below a shard, which takes whole blocks of 64 KiB.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(OSError, match=r"cannot write to .*File too large"):
                prepare(config_for(tmp_path, tokenizer=tokenizer, out=tmp_path / "other"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert listing(tmp_path) == before


class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"context_length": 0}, "context_length of at least 1, got 0"),
            ({"vocab_size": 256}, "vocab_size of at least 257 .*, got 256"),
            ({"validation_fraction": 0.0}, "validation_fraction between 0 and 1, got 0.0"),
            ({"validation_fraction": 1.0}, "validation_fraction between 0 and 1, got 1.0"),
            ({"max_bytes": 0}, "max_bytes of at least 1, got 0"),
            ({"suffixes": ("py",)}, "suffixes such as .txt, got 'py'"),
            ({"suffixes": (".rb",)}, "no file in .* ends in one of .rb"),
            ({"validation_fraction": 1e-9}, "at least one validation document"),
            ({"validation_fraction": 1 - 1e-9}, "at least one train document"),
            ({"context_length": 5000}, "at least one train window .* context_length 5000"),
            ({"source": "/corpus"}, r"source is a tuple: \('/corpus',\)"),
            ({"include": "*.py"}, r"include is a tuple: \('\*\.py',\)"),
            ({"hf_split": "test"}, "expected a source hf:NAME with hf_split, got .*corpus"),
            ({"source": ("hf:a/b:0.7",)}, "a weight is for several sources, not for one"),
        ],
    )
    def test_is_refused_in_one_line_and_nothing_is_left(self, tmp_path, changes, message):
        write_corpus(tmp_path / "corpus", count=12)
        before = listing(tmp_path)
        with pytest.raises(ValueError, match=message) as error:
            prepare(config_for(tmp_path, **changes))
        assert "\n" not in str(error.value)
        assert listing(tmp_path) == before

    def test_corpus_without_text(self, tmp_path):
        (tmp_path / "corpus").mkdir()
        (tmp_path / "corpus" / "a.py").write_bytes(b"\n")
        (tmp_path / "corpus" / "b.py").write_bytes(b"\xff")
        (tmp_path / "corpus" / "c.py").write_text("\u00a0\u3000\n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"got none \(0 duplicates, 1 non_utf8, 2 empty"):
            prepare(config_for(tmp_path))
        assert not (tmp_path / "data").exists()

    def test_missing_corpus(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"existing path as source, got '.*corpus'"):
            prepare(config_for(tmp_path))
        with pytest.raises(FileNotFoundError, match=r":\.7'; a weight is for several sources"):
            prepare(config_for(tmp_path, source=(f"{tmp_path}:.7",)))

    def test_few_documents_say_which_share_gives_both_splits_one(self, tmp_path):
        (tmp_path / "corpus").mkdir()
        for number in range(3):
            (tmp_path / "corpus" / f"{number}.py").write_text(f"{number} " + "word " * 50)
        with pytest.raises(ValueError, match="or make one text of them") as error:
            prepare(config_for(tmp_path, validation_fraction=0.02))
        (share,) = re.findall(r"take validation_fraction (\S+) ", str(error.value))
        manifest = prepare(config_for(tmp_path, validation_fraction=float(share)))
        assert manifest.splits["validation"].documents == 1

    def test_directory_with_something_else_in_it(self, tmp_path):
        write_corpus(tmp_path / "corpus")
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "thesis.tex").write_text("precious")
        with pytest.raises(ValueError, match="new, empty or prepared data"):
            prepare(config_for(tmp_path))
        assert (tmp_path / "data" / "thesis.tex").read_text() == "precious"

    def test_empty_directory_is_filled(self, tmp_path):
        write_corpus(tmp_path / "corpus")
        (tmp_path / "data").mkdir()
        assert prepare(config_for(tmp_path)).splits["train"].windows

    def test_target_that_cannot_be_made(self, tmp_path):
        write_corpus(tmp_path / "corpus")
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match="file"):
            prepare(config_for(tmp_path, out=tmp_path / "file" / "data"))


class TestCommandLine:
    def test_fields_are_options_with_help(self, capsys):
        arguments = ["some/where", "--source", "hf:name", "--suffixes", ".py", ".md"]
        config = tyro.cli(PrepareConfig, args=[*arguments, "--max-bytes", "5000"])
        assert config.out == Path("some/where")
        assert config.suffixes == (".py", ".md")
        assert config.max_bytes == 5000
        assert tyro.cli(PrepareConfig, args=[]) == PrepareConfig()
        with pytest.raises(SystemExit):
            tyro.cli(PrepareConfig, args=["--help"])
        assert "Hugging Face dataset" in capsys.readouterr().out

    def test_progress_is_drawn_on_a_terminal_only(self, tmp_path, monkeypatch, capsys):
        write_corpus(tmp_path / "corpus")
        prepare(config_for(tmp_path))
        printed = capsys.readouterr()
        assert not printed.err
        assert "train: " in printed.out
        assert "41 duplicates, 1 not UTF-8, 2 empty, 1 too short" in printed.out
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        prepare(config_for(tmp_path, out=tmp_path / "other"))
        assert "tokenising train" in capsys.readouterr().err
