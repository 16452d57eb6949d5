"""A run that starts from another one's weights: what it takes, drops and makes anew."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egattn.model import Decoder
from egattn.model.layers import unstack
from egattn.model.linear import SPECTRAL
from egattn.sharding import make_mesh, state_sharding
from egattn.train import TrainConfig, TrainState
from egattn.train.config import inherited
from egattn.train.evaluate import load_state
from egattn.train.initialise import Report, check_origin, initialise
from egattn.train.step import init_state
from tests.converted_runs import apply, make_run, one_device, to_run
from tests.hugging_face import CONFIG, TOKENS, gpt2, write, write_tokenizer


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    """A GPT-2 of three layers as a run."""
    return to_run(write(tmp_path_factory.mktemp("converted") / "gpt2", CONFIG, gpt2(CONFIG)))


def start(
    directory: Path, preset: str, mesh=None, **fields: Any
) -> tuple[TrainConfig, TrainState, Report]:
    """As `egattn train --init-from` starts."""
    config = new_run(directory, preset, **fields)
    return config, *initialise(config, mesh or one_device(), directory)


def new_run(directory: Path, preset: str, tokenizer_sha256: str = "", **fields: Any) -> TrainConfig:
    """What `egattn train --init-from` makes of its arguments."""
    sizes = {"vocab_size": 300, "context_length": 16, **inherited(directory)}
    config = TrainConfig.preset_defaults(preset, Path("new"), **(sizes | fields))
    return dataclasses.replace(config, tokenizer_sha256=tokenizer_sha256, seed=3)


def named(config: TrainConfig, state: TrainState) -> dict[str, np.ndarray]:
    variables = {"params": state.params, SPECTRAL: state.spectral}
    return unstack(config.model, jax.tree.map(np.asarray, variables))


def origin(directory: Path) -> dict[str, np.ndarray]:
    run = TrainConfig.read(directory)
    return named(run, load_state(run, one_device()))


def outputs(config: TrainConfig, state: TrainState, tokens: np.ndarray):
    model = dataclasses.replace(config.model, implementation="reference", scan_layers=True)
    variables = {"params": state.params, SPECTRAL: state.spectral}
    output: Any = jax.jit(Decoder(model).apply)(variables, jnp.asarray(tokens))
    return np.asarray(output.logits), np.asarray(output.entropy)


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray], names) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in names)


def test_the_same_architecture_takes_everything(converted):
    config, state, report = start(converted, "sm_ln_g")
    assert (report.dropped, report.new, report.changed) == ((), (), ())
    assert not any(report.taken.values())
    assert equal(named(config, state), origin(converted), report.taken)
    assert report.taken.keys() == origin(converted).keys()
    assert int(state.step) == 0
    fresh = init_state(config, one_device())
    assert jax.tree.structure(state) == jax.tree.structure(fresh)
    assert jax.tree.all(jax.tree.map(np.array_equal, state.opt_state, fresh.opt_state))


def test_another_activation_takes_everything(converted):
    config, state, report = start(converted, "sm_ln_r")
    assert (report.dropped, report.new) == ((), ())
    assert report.changed == ("activation: gelu -> relu",)
    assert equal(named(config, state), origin(converted), report.taken)


def test_a_network_without_norms_drops_them(converted):
    config, state, report = start(converted, "sm_g")
    norms = [name for name in origin(converted) if "norm" in name]
    assert len(norms) == 14
    assert sorted(report.dropped) == sorted(norms)
    assert report.new == ()
    assert report.taken.keys() == origin(converted).keys() - set(norms)
    assert equal(named(config, state), origin(converted), report.taken)


def test_what_is_new_starts_as_it_would_without_an_origin(converted):
    config, state, report = start(converted, "ereg_sm_t_scfuffn")
    new = named(config, state)
    kinds = {name.split(".", 2)[-1] for name in report.new}
    fused = {"feed_forward.fused.kernel", "feed_forward.fused.bias"}
    assert kinds == fused | {"alpha", "beta", "attention.log_temperature", "threshold"}
    assert len(report.new) == 3 * 5 + 1
    fresh = named(config, init_state(config, one_device()))
    assert equal(new, fresh, report.new)
    assert equal(new, origin(converted), report.taken)
    assert report.taken.keys() | set(report.new) == new.keys()
    assert {name for name in report.dropped if ".up." in name or ".down." in name} == {
        f"layers.{i}.feed_forward.{matrix}.{leaf}"
        for i in range(3)
        for matrix in ("up", "down")
        for leaf in ("kernel", "bias")
    }


@pytest.mark.parametrize("reparam", ["weight_norm", "spectral_norm"])
def test_gains_start_so_that_they_change_nothing(converted, reparam):
    config, state, report = start(converted, "sm_ln_g", weight_reparam=reparam)
    logits, _ = apply(converted, TOKENS)
    np.testing.assert_allclose(outputs(config, state, TOKENS)[0], logits, atol=1e-4)
    gains = {name for name in report.new if name.endswith(".gain")}
    vectors = {name for name in report.new if name.startswith("spectral.")}
    assert gains | vectors == set(report.new)
    assert len(gains) == 6
    assert len(vectors) == (6 if reparam == "spectral_norm" else 0)


def test_the_same_parametrisation_is_taken_with_its_state(tmp_path):
    make_run(tmp_path / "run", "sm_snorm")
    config, state, report = start(tmp_path / "run", "sm_snorm")
    assert (report.new, report.dropped) == ((), ())
    assert equal(named(config, state), origin(tmp_path / "run"), report.taken)


def test_linear_matrices_become_one(tmp_path):
    make_run(tmp_path / "run", "sm_ln", biases=("q", "k", "v", "o", "ffn"))
    config, state, report = start(tmp_path / "run", "sm_ln", feed_forward="fused")
    assert (report.new, report.dropped) == ((), ())
    up, down = "layers.0.feed_forward.up.kernel", "layers.0.feed_forward.down.kernel"
    assert report.taken["layers.0.feed_forward.fused.kernel"] == f"from {up} and {down}"
    values, before = named(config, state), origin(tmp_path / "run")
    wanted = before[up].astype(np.float64) @ before[down]
    np.testing.assert_allclose(values["layers.0.feed_forward.fused.kernel"], wanted, atol=1e-6)
    for one, other in zip(
        outputs(config, state, TOKENS), apply(tmp_path / "run", TOKENS), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_tied_head_becomes_a_separate_one(converted):
    config, state, report = start(converted, "sm_ln_g", tie_embeddings=False)
    assert report.taken["head"] == "from token_embedding.embedding"
    assert (report.new, report.dropped) == ((), ())
    np.testing.assert_array_equal(
        outputs(config, state, TOKENS)[0], apply(converted, TOKENS)[0], strict=True
    )


def test_a_shorter_network_takes_the_first_positions(converted):
    config, state, report = start(converted, "sm_ln_g", context_length=8)
    name = "position_embedding.embedding"
    assert report.taken[name] == "the first 8 of 16 positions"
    assert [key for key, remark in report.taken.items() if remark] == [name]
    np.testing.assert_array_equal(named(config, state)[name], origin(converted)[name][:8])
    logits, _ = apply(converted, TOKENS[:, :8])
    np.testing.assert_allclose(outputs(config, state, TOKENS[:, :8])[0], logits, atol=1e-5)


def test_temperatures_of_the_first_positions(tmp_path):
    make_run(tmp_path / "run", "sm_t_scfuffn")
    config, state, _ = start(tmp_path / "run", "sm_t_scfuffn", context_length=8)
    name = "layers.1.attention.log_temperature"
    np.testing.assert_array_equal(named(config, state)[name], origin(tmp_path / "run")[name][:, :8])


def test_layers_of_several_kinds(tmp_path):
    """What a run of equal layers stacks may be there for some of them only."""
    make_run(tmp_path / "run", "sm_ln_g", feed_forward=("mlp", "none"))
    config, state, report = start(tmp_path / "run", "sm_ln_g")
    assert report.changed == ("feed_forward: ('mlp', 'none') -> mlp",)
    assert {name for name in report.new if "layers.1." not in name} == set()
    assert len(report.new) == 4
    values = named(config, state)
    assert equal(values, named(config, init_state(config, one_device())), report.new)
    assert equal(values, origin(tmp_path / "run"), report.taken)


def test_it_lies_where_the_mesh_wants_it(converted):
    mesh = make_mesh("replica=2,fsdp=2,tensor=2")
    _, state, report = start(converted, "ereg_sm_t_scfuffn", mesh)
    wanted = state_sharding(mesh, state)
    assert jax.tree.all(
        jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, wanted)
    )
    alone = start(converted, "ereg_sm_t_scfuffn")
    assert report == alone[2]
    assert jax.tree.all(jax.tree.map(np.array_equal, state.params, alone[1].params))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"vocab_size": 301}, r"vocab_size must be that of .*run, 300, got 301"),
        ({"num_layers": 2}, "num_layers must be that of .*run, 3, got 2"),
        ({"num_heads": 2}, "num_heads must be that of .*run, 4, got 2"),
        ({"num_kv_heads": 2}, "kv_heads must be that of .*run, 4, got 2"),
        ({"embed_dim": 32}, "embed_dim must be that of .*run, 24, got 32"),
        ({"hidden_dim": 32}, r"down.kernel has shape \[96, 24\] in .*run, expected \[32, 24\]"),
        ({"context_length": 17}, r"embedding has shape \[16, 24\] in .*run, expected \[17,"),
    ],
)
def test_other_shapes_are_refused(converted, fields, match):
    config = new_run(converted, "sm_ln_g", **fields)
    with pytest.raises(ValueError, match=match):
        check_origin(config, converted)
    with pytest.raises(ValueError, match=match):
        initialise(config, one_device(), converted)


@pytest.mark.parametrize("other", ["none", "spectral_norm"])
def test_another_parametrisation_is_refused(tmp_path, other):
    make_run(tmp_path / "run", "sm_wnorm")
    with pytest.raises(ValueError, match=f"weight_reparam must be the same, got {other}"):
        start(tmp_path / "run", "sm_wnorm", weight_reparam=other)


def test_another_tokenizer_is_refused(tmp_path):
    config = CONFIG | {"vocab_size": 400}
    source = write(tmp_path / "gpt2", config, gpt2(config))
    write_tokenizer(source, 400)
    run = to_run(source)
    own = TrainConfig.read(run).tokenizer_sha256
    start(run, "sm_ln_g", vocab_size=400, tokenizer_sha256=own)
    with pytest.raises(ValueError, match="has another tokenizer than"):
        start(run, "sm_ln_g", vocab_size=400, tokenizer_sha256="another")


def test_what_is_no_run_is_refused(converted, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a run directory"):
        inherited(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a run directory"):
        check_origin(new_run(converted, "sm_ln_g"), tmp_path)


def test_the_checksum_is_that_of_the_weights_in_use(tmp_path):
    directory = tmp_path / "run"
    make_run(directory, "sm_ln_g")
    config = new_run(directory, "sm_ln_g")
    first = check_origin(config, directory)
    assert first == check_origin(config, directory)
    files = [path for path in (directory / "checkpoints").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(FileNotFoundError, match="is intact: checkpoint 1 is not intact"):
        check_origin(config, directory)
    shutil.rmtree(directory / "checkpoints")
    make_run(tmp_path / "other", "sm_ln_g", seed=1)
    shutil.copytree(tmp_path / "other" / "checkpoints", directory / "checkpoints")
    assert check_origin(config, directory) != first


def test_the_report_names_everything_once(converted):
    _, _, report = start(converted, "ereg_sm_t_scfuffn", context_length=8)
    lines = report.lines()
    assert lines[0].startswith(f"weights of {converted} step 0; ")
    assert "context_length: 16 -> 8" in lines[0]
    assert "feed_forward: mlp -> fused" in lines[0]
    assert f"{len(report.taken)} parameters taken" in lines
    assert "  layers 0-2: attention.q.kernel" in lines
    assert "  position_embedding.embedding (the first 8 of 16 positions)" in lines
    dropped, new = lines.index("26 parameters dropped"), lines.index("16 parameters new")
    assert "  layers 0-2: feed_forward.up.kernel" in lines[dropped:new]
    assert "  final_norm.scale" in lines[dropped:new]
    assert "  layers 0-2: attention.log_temperature" in lines[new:]
    assert len(lines) == len(set(lines))
