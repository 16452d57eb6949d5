"""`egattn inspect` on prepared data and on Hugging Face directories."""

import json
import re
import shutil

import numpy as np
import pytest

from tests import hugging_face
from tests.converted_runs import back, make_run
from tests.hugging_face import CONFIG, gpt2, write, write_shards, write_tokenizer
from tests.inspect.inspecting import assert_fails, flip, run_of, text_of
from tests.training import egattn


class TestData:
    def test_against_the_manifest_and_the_files(self, data, capsys):
        values = run_of(capsys, "{0}", data)
        manifest = json.loads((data / "manifest.json").read_text())
        assert values["kind"] == "data"
        for name in (
            "source",
            "packing",
            "context_length",
            "vocab_size",
            "tokenizer_sha256",
            "dtype",
        ):
            assert values[name] == manifest[name]
        assert values["bytes"] == sum(p.stat().st_size for p in data.glob("*.array_record"))
        for name, split in values["splits"].items():
            expected = manifest["splits"][name]
            for count in ("documents", "tokens", "windows", "dropped_tokens", "end_tokens"):
                assert split[count] == expected[count]
            rate = expected["target_bytes"] / (expected["windows"] * 32)
            assert split["bytes_per_token"] == pytest.approx(rate)
        assert values["longest"] == manifest["longest"]
        assert values["sample"]["text"] == manifest["splits"]["train"]["sample"]
        assert values["verified"] is False
        assert run_of(capsys, "{0} --verify", data)["verified"] is True

    def test_sample_is_the_first_window(self, data, capsys):
        from array_record.python.array_record_module import ArrayRecordReader
        from tokenizers import Tokenizer

        reader = ArrayRecordReader(str(min(data.glob("train-*.array_record"))))
        tokens = np.frombuffer(reader.read([0])[0], "<u2").tolist()
        reader.close()
        text = Tokenizer.from_file(str(data / "tokenizer.json")).decode(tokens, False)
        sample = run_of(capsys, "{0}", data)["sample"]
        assert sample == {"split": "train", "window": 0, "text": text}
        shown = text_of(capsys, "{0}", data)
        assert f"first window of train: {text!r}" in shown
        assert re.search(r"longest documents:(\n  \d+ bytes  .+){5}\n", shown)
        assert re.search(r"train +\d+ +\d+ +[\d,]+ +\d+ +[\d,]+ +\d\.\d\d +1 +[\d,]+\n", shown)
        assert max(map(len, shown.splitlines()[1:-7])) <= 100

    def test_damaged(self, data, tmp_path, capsys):
        damaged = tmp_path / "damaged"
        shutil.copytree(data, damaged)
        shard = next(damaged.glob("train-*"))
        content = shard.read_bytes()
        flip(shard)
        assert run_of(capsys, "{0}", damaged)["kind"] == "data"
        assert_fails(capsys, f"inspect {damaged} --verify", f"{shard.name} disagrees with")
        # The right size and nothing that a reader understands.
        shard.write_bytes(bytes(len(content)))
        assert_fails(capsys, f"inspect {damaged}", "the first window of")
        shard.write_bytes(content[:-1])
        assert_fails(capsys, f"inspect {damaged}", "is damaged: expected")
        (damaged / "manifest.json").write_text("{")
        assert_fails(capsys, f"inspect {damaged}", "is not JSON")


class TestHuggingFace:
    @pytest.mark.parametrize("written", [write, write_shards])
    def test_gpt2(self, tmp_path, capsys, written):
        tensors = gpt2(CONFIG)
        source = written(tmp_path / "gpt2", CONFIG, tensors)
        values = run_of(capsys, "{0}", source)
        assert (values["kind"], values["model_type"]) == ("hugging_face", "gpt2")
        assert values["obstacle"] is None
        assert values["tensors"] == len(tensors)
        assert values["elements"] == sum(x.size for x in tensors.values())
        assert values["dtypes"] == {"F32": len(tensors)}
        assert values["bytes"] == sum(p.stat().st_size for p in source.glob("*.safetensors"))
        assert values["model"]["embed_dim"] == CONFIG["n_embd"]
        assert "egattn convert can read it" in text_of(capsys, "{0}", source)

    def test_reads_headers_only(self, tmp_path, capsys):
        tensors = gpt2(CONFIG)
        tensors["transformer.wte.weight"][:] = np.nan
        source = write(tmp_path / "gpt2", CONFIG, tensors)
        assert run_of(capsys, "{0}", source)["obstacle"] is None

    def test_own_form_and_tokenizer(self, tmp_path, capsys):
        make_run(tmp_path / "run", "sm_t_scfuffn")
        source = back(tmp_path / "run", "own")
        write_tokenizer(source, 300)
        values = run_of(capsys, "{0}", source)
        assert (values["model_type"], values["obstacle"]) == ("egattn", None)
        assert values["model"] == json.loads((source / "config.json").read_text())["model"]
        assert re.fullmatch("[0-9a-f]{64}", values["tokenizer_sha256"])
        write_tokenizer(source, 301)
        assert "has 301 tokens" in run_of(capsys, "{0}", source)["obstacle"]

    @pytest.mark.parametrize(
        ("config", "change", "reason"),
        [
            ({"model_type": "llama"}, {}, "expected model_type 'gpt2', got 'llama'"),
            ({"activation_function": "silu"}, {}, "activation_function must be one of"),
            ({"n_layer": 4}, {}, "expected tensor transformer.h.3"),
            ({"n_head": 5}, {}, "num_heads must divide"),
            ({}, {"transformer.wpe.weight": np.zeros((2, 24), np.float32)}, "has shape [2, 24]"),
            ({}, {"transformer.ln_f.bias": np.zeros(24, np.int32)}, "is I32, expected one of"),
        ],
    )
    def test_says_why_not(self, tmp_path, capsys, config, change, reason):
        source = write(tmp_path / "hf", CONFIG | config, gpt2(CONFIG) | change)
        values = run_of(capsys, "{0}", source)
        assert reason in values["obstacle"]
        assert values["tensors"] == len(gpt2(CONFIG))
        with pytest.raises(SystemExit):
            egattn("convert {0} {1}", source, tmp_path / "run")
        assert values["obstacle"].split(": ")[-1] in capsys.readouterr().err
        assert "egattn convert cannot read it: " in text_of(capsys, "{0}", source)

    def test_weights_missing_or_damaged(self, tmp_path, capsys):
        source = write(tmp_path / "gpt2", CONFIG, hugging_face.gpt2(CONFIG))
        file = source / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        assert str(file) in run_of(capsys, "{0}", source)["obstacle"]
        file.unlink()
        assert "got neither" in run_of(capsys, "{0}", source)["obstacle"]
        assert "got neither" in text_of(capsys, "{0}", source)
