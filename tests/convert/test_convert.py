"""GPT-2 directories become runs that compute the same, and become the same files again."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egattn.convert import ConvertConfig, convert
from egattn.model import PRESETS, Decoder, DecoderConfig
from egattn.model.layers import shapes, stack, unstack
from egattn.run import RunDirectory
from egattn.run.checkpoints import Saver
from egattn.train import EvaluateConfig, TrainConfig, evaluate
from egattn.train.evaluate import load_state
from tests import hugging_face
from tests.converted_runs import apply, back, make_run, one_device, same, to_run
from tests.hugging_face import (
    BFLOAT16,
    CONFIG,
    TOKENS,
    gpt2,
    read,
    write,
    write_shards,
    write_tokenizer,
)

VARIANTS: dict[str, dict[str, Any]] = {
    "gelu": {},
    "gelu of torch": {"activation_function": "gelu_pytorch_tanh"},
    "relu": {"activation_function": "relu"},
    "linear": {"activation_function": "linear"},
    "separate head": {"tie_word_embeddings": False},
    "hidden width": {"n_inner": 40},
    "scores over layers": {"scale_attn_by_inverse_layer_idx": True},
    "plain scores": {"scale_attn_weights": False},
    "both": {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    "upcast": {"reorder_and_upcast_attn": True, "dtype": "float32"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_converted_decoder_computes_what_gpt2_computes(tmp_path, variant):
    config = CONFIG | VARIANTS[variant]
    tensors = gpt2(config)
    run = to_run(write(tmp_path / "gpt2", config, tensors))
    logits, entropy = apply(run, TOKENS)
    expected_logits, expected_entropy = hugging_face.forward(config, tensors, TOKENS)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-4)
    np.testing.assert_allclose(entropy, expected_entropy, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_way_there_and_back_changes_no_bit(tmp_path, variant):
    config = CONFIG | VARIANTS[variant]
    tensors = gpt2(config)
    tensors["transformer.wte.weight"][3, :4] = [-0.0, 1e-42, 3e38, -3e38]
    source = write(tmp_path / "gpt2", config, tensors)
    target = back(to_run(source))
    assert (target / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert same(read(target)[1], tensors)
    # Names, types, order and metadata too.
    name = "model.safetensors"
    assert (target / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("dtypes", [[np.float16], [BFLOAT16], [np.float16, BFLOAT16, np.float32]])
def test_narrow_types_come_back_as_they_were(tmp_path, dtypes):
    tensors = gpt2(CONFIG)
    narrow = {
        name: x.astype(dtypes[i % len(dtypes)]) for i, (name, x) in enumerate(tensors.items())
    }
    run = to_run(write(tmp_path / "gpt2", CONFIG, narrow))
    logits, _ = apply(run, TOKENS)
    expected, _ = hugging_face.forward(CONFIG, narrow, TOKENS)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert same(read(back(run))[1], narrow)


def test_changed_weights_are_not_rounded_to_the_type_they_came_with(tmp_path):
    narrow = {name: x.astype(np.float16) for name, x in gpt2(CONFIG).items()}
    run = to_run(write(tmp_path / "gpt2", CONFIG | {"dtype": "float16"}, narrow))
    config = TrainConfig.read(run)
    state = load_state(config, one_device())
    shutil.rmtree(run / "checkpoints")
    params = jax.tree.map(lambda x: x + np.float32(1e-6), state.params)
    with Saver(RunDirectory(run), keep=1) as saver:
        saver.save(0, dataclasses.replace(state, params=params), {})
    config, tensors = read(back(run))
    assert config == CONFIG | {"dtype": "float32"}
    wanted = narrow["transformer.ln_f.weight"].astype(np.float32) + np.float32(1e-6)
    np.testing.assert_array_equal(tensors["transformer.ln_f.weight"], wanted)


def test_shards_are_read_as_one(tmp_path):
    tensors = gpt2(CONFIG)
    target = back(to_run(write_shards(tmp_path / "gpt2", CONFIG, tensors)))
    assert same(read(target)[1], tensors)


def test_old_names_and_masks(tmp_path):
    """What GPT-2's first checkpoints have: no prefix, causal masks, a copy of the tied head."""
    tensors = gpt2(CONFIG)
    old = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    old["lm_head.weight"] = tensors["transformer.wte.weight"]
    for i in range(CONFIG["n_layer"]):
        old[f"h.{i}.attn.bias"] = np.tri(16, dtype=np.uint8)[None, None]
        old[f"h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)
    source = write(tmp_path / "gpt2", CONFIG, old)
    lines = convert(ConvertConfig(source, tmp_path / "run"))
    assert "h.0.attn.bias" in lines[1]
    assert same(read(back(tmp_path / "run"))[1], tensors)


def test_config_defaults_are_those_of_transformers(tmp_path):
    names = ("model_type", "vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    config = {name: CONFIG[name] for name in names}
    run = to_run(write(tmp_path / "gpt2", config, gpt2(CONFIG)))
    logits, _ = apply(run, TOKENS)
    expected, _ = hugging_face.forward(CONFIG, gpt2(CONFIG), TOKENS)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_says_how_many_parameters(tmp_path):
    tensors = gpt2(CONFIG)
    lines = convert(ConvertConfig(write(tmp_path / "gpt2", CONFIG, tensors), tmp_path / "run"))
    assert f"{sum(x.size for x in tensors.values()):,} parameters" in lines[0]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_converted(tmp_path, preset):
    run = tmp_path / "run"
    make_run(run, preset)
    lines = convert(ConvertConfig(run, tmp_path / "out"))
    logits, entropy = apply(run, TOKENS)
    if preset in ("sm_ln_g", "sm_ln_r", "sm_ln"):
        assert "GPT2LMHeadModel" in lines[1]
        expected_logits, expected_entropy = hugging_face.forward(*read(tmp_path / "out"), TOKENS)
        np.testing.assert_allclose(logits, expected_logits, atol=1e-4)
        np.testing.assert_allclose(entropy, expected_entropy, atol=1e-5)
        return
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "egattn"
    assert "transformers cannot load it" in lines[1]
    again = to_run(tmp_path / "out", "again")
    for one, other in zip(apply(again, TOKENS), (logits, entropy), strict=True):
        np.testing.assert_array_equal(one, other)
    assert TrainConfig.read(again).model == TrainConfig.read(run).model
    assert same(read(back(again))[1], read(tmp_path / "out")[1])


NO_NORM = "no LayerNorm before attention and feed-forward; no LayerNorm before the head"


@pytest.mark.parametrize(
    ("preset", "fields", "reason"),
    [
        ("sm_g", {}, NO_NORM),
        ("sm_wnorm", {}, f"{NO_NORM}; matrices under weight_norm"),
        ("sm_scffn", {}, f"{NO_NORM}; a feed-forward scaled by learned alpha and beta"),
        ("sm_ln_g", {"temperature": 0.5}, "learned temperatures"),
        ("sm_ln_g", {"num_kv_heads": 1}, "fewer key than query heads"),
        ("sm_ln_g", {"final_norm": "none"}, "no LayerNorm before the head"),
        ("sm_ln_r", {"activation": "leaky_relu"}, "a leaky ReLU with a learned slope"),
        ("sm_ln_r", {"feed_forward": ("mlp", "none")}, "a feed-forward of kind none"),
        ("sm_ln", {"feed_forward": ("mlp", "fused")}, "a feed-forward of kind fused"),
    ],
)
def test_says_what_gpt2_does_not_have(tmp_path, preset, fields, reason):
    make_run(tmp_path / "run", preset, **fields)
    lines = convert(ConvertConfig(tmp_path / "run", tmp_path / "out"))
    assert lines[1] == f"transformers cannot load it, for GPT-2 does not have: {reason}"


def test_thresholds_are_left_out(tmp_path):
    make_run(tmp_path / "run", "sm_ln_g", threshold=0.5)
    lines = convert(ConvertConfig(tmp_path / "run", tmp_path / "out"))
    assert "left out, for the network does not read them: threshold" in lines
    assert "GPT2LMHeadModel" in lines[1]


@pytest.mark.parametrize(
    "kinds", [("mlp",) * 3, ("mlp", "none", "mlp"), ("fused", "fused", "none")]
)
def test_layers_have_names_of_their_own(kinds):
    config = DecoderConfig(
        300, 8, 3, 2, None, 16, feed_forward=kinds, activation="identity", ffn_scaling=True
    )
    decoder = Decoder(dataclasses.replace(config, scan_layers=True))
    variables = jax.jit(decoder.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    flat = unstack(config, dict(variables))
    assert {name: x.shape for name, x in flat.items()} == shapes(config)
    assert [f"layers.{i}.alpha" in flat for i in range(3)] == [kind != "none" for kind in kinds]
    params = stack(config, flat)["params"]
    assert jax.tree.all(jax.tree.map(np.array_equal, params, dict(variables)["params"]))


class TestWithTokenizer:
    @pytest.fixture
    def source(self, tmp_path):
        config = CONFIG | {"vocab_size": 400}
        source = write(tmp_path / "gpt2", config, gpt2(config))
        write_tokenizer(source, 400)
        (source / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
        return source

    def test_evaluates_on_data_of_its_tokenizer(self, source, tmp_path, monkeypatch, capsys):
        """With the commands that it prints."""
        from tests import training

        monkeypatch.chdir(tmp_path)
        corpus = tmp_path / "corpus"
        corpus.mkdir()
        for i in range(40):
            (corpus / f"{i}.txt").write_text(f"file {i}: " + "the quick brown fox " * 20)
        lines = convert(ConvertConfig(source, Path("run")))
        prepare, evaluation = (line.split() for line in lines[-2:])
        training.egattn(
            " ".join([*prepare[1:], "--source", "corpus", "--validation-fraction", "0.3"])
        )
        capsys.readouterr()
        training.egattn(" ".join([*evaluation[1:], "--windows", "8", "--json"]))
        values = json.loads(capsys.readouterr().out)
        assert (values["step"], values["windows"]) == (0, 8)
        expected = self._loss(source, TrainConfig.read(Path("run")), 8)
        assert values["loss"] == pytest.approx(expected, abs=2e-5)
        training.egattn("private export run exported --windows 2")

    def _loss(self, source: Path, run: TrainConfig, windows: int) -> float:
        from egattn.data import evaluation_batches, load_manifest

        manifest = load_manifest(run.data)
        rows, _ = next(
            evaluation_batches(run.data, manifest, batch_size=windows, context_length=16)
        )
        logits, _ = hugging_face.forward(*read(source), rows[:, :-1])
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -float(np.take_along_axis(log_p, rows[:, 1:, None], -1).mean())

    def test_files_of_the_tokenizer_come_back(self, source):
        target = back(to_run(source))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (target / name).read_bytes() == (source / name).read_bytes()

    def test_other_data_are_refused(self, source, data):
        run = to_run(source)
        with pytest.raises(ValueError, match="vocab_size must be that of the data's tokenizer"):
            evaluate(EvaluateConfig(run, data=data))


def test_a_trained_run_takes_its_tokenizer_along(finished, tmp_path):
    lines = convert(ConvertConfig(finished, tmp_path / "out"))
    assert "step 8" in lines[0]
    data = TrainConfig.read(finished).data
    name = "tokenizer.json"
    assert (tmp_path / "out" / name).read_bytes() == (data / name).read_bytes()
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "<|endoftext|>"


def test_an_earlier_step(finished, tmp_path):
    convert(ConvertConfig(finished, tmp_path / "out", step=6))
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 5 in .*have: 4, 6, 8"):
        convert(ConvertConfig(finished, tmp_path / "other", step=5))
    assert not (tmp_path / "other").exists()
