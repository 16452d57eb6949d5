"""The training step: what must not change its numbers, and that it learns."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from egattn.model import PRESETS
from egattn.optimizer import OptimizerConfig, decay_mask, make_optimizer, make_schedule
from egattn.sharding import check_batch, make_mesh, state_sharding
from egattn.train.config import PenaltyConfig, TrainConfig
from egattn.train.step import batch_gradient, device_batch, init_state, make_train_step

SIZE = {"vocab_size": 300, "context_length": 16, "num_layers": 2, "num_heads": 4, "embed_dim": 32}


def config(
    preset="ereg_sm_t_scfuffn", *, accumulation=1, penalty=None, optimizer=None, **model: Any
):
    defaults = TrainConfig.preset_defaults(preset, Path("unused"), **{**SIZE, **model})
    return dataclasses.replace(
        defaults,
        steps=20,
        batch_size=8,
        accumulation=accumulation,
        penalty=defaults.penalty if penalty is None else penalty,
        optimizer=OptimizerConfig(warmup=0.3) if optimizer is None else optimizer,
    )


def one_device() -> Mesh:
    return make_mesh(devices=jax.devices()[:1])


def rows(c: TrainConfig) -> np.ndarray:
    """Text-like: a few tokens are frequent, so that there is something to learn at once."""
    rng = np.random.default_rng(0)
    return np.minimum(rng.zipf(1.3, (8, c.model.context_length + 1)), 299).astype(np.int32)


def gradients(c: TrainConfig, mesh: Mesh):
    """Gradients and metrics of the first step; no parameter's vanish."""
    c = dataclasses.replace(c, model=dataclasses.replace(c.model, init_std=0.1))
    state = init_state(c, mesh)

    @jax.jit
    def run(state, tokens):
        return batch_gradient(c, mesh, state, tokens)

    return jax.device_get(run(state, device_batch(c, mesh, rows(c))))


def run(c: TrainConfig, mesh: Mesh | None = None, steps: int = 4):
    """Losses, penalties, gradient norms and head entropies of the first steps."""
    mesh = one_device() if mesh is None else mesh
    tokens = device_batch(c, mesh, rows(c))
    state, step, records = init_state(c, mesh), make_train_step(c, mesh), []
    for _ in range(steps):
        state, metrics = step(state, tokens)
        records.append(jax.device_get(metrics))
    return {name: np.stack([r[name] for r in records]) for name in records[0]}


def check_same(a, b):
    assert np.abs(a["loss"] - b["loss"]).max() <= 5e-6
    assert np.abs(a["head_entropy"] - b["head_entropy"]).max() <= 5e-6
    for name in ("penalty", "gradient_norm"):
        assert np.abs(a[name] - b[name]).max() <= 1e-5 * np.abs(a[name]).max() + 1e-7


PENALTIES = {
    "mean": PenaltyConfig(weight=0.1),
    "row": PenaltyConfig(weight=0.1, ceiling="row", kind="excess"),
    "head": PenaltyConfig(weight=0.1, reduction="head"),
    "sum": PenaltyConfig(weight=1e-3, reduction="sum"),
}


@functools.cache
def base(penalty: str):
    """The numbers of one device."""
    return run(config(penalty=PENALTIES[penalty]))


@pytest.fixture(scope="module")
def one():
    return gradients(config(), one_device())


SPECS = (
    "replica=8",
    "fsdp=8",
    "replica=2,fsdp=2,tensor=2",
    "replica=4,context=2",
    "fsdp=2,context=4",
    "fsdp=2,context=2,tensor=2",
)


@pytest.mark.slow
class TestNumbersDoNotDepend:
    @pytest.mark.parametrize("penalty", PENALTIES)
    def test_on_accumulation(self, penalty):
        check_same(base(penalty), run(config(penalty=PENALTIES[penalty], accumulation=4)))

    @pytest.mark.parametrize(
        "spec", ["tensor=8", "replica=2,fsdp=2,tensor=2", "replica=2,context=4"]
    )
    def test_on_the_mesh(self, spec):
        check_same(base("head"), run(config(penalty=PENALTIES["head"]), make_mesh(spec)))

    @pytest.mark.parametrize("spec", SPECS)
    def test_on_the_mesh_nor_does_any_gradient(self, spec, one):
        """Losses, every leaf's gradient and entropies of the first step."""
        grads, _, metrics = gradients(config(), make_mesh(spec))
        assert abs(metrics["loss"] - one[2]["loss"]) <= 5e-6
        assert np.abs(metrics["head_entropy"] - one[2]["head_entropy"]).max() <= 1e-6
        for (path, mine), (_, other) in zip(
            *(jax.tree_util.tree_leaves_with_path(tree) for tree in (grads, one[0])), strict=True
        ):
            assert np.linalg.norm(mine - other) <= 1e-5 * np.linalg.norm(other), path

    def test_on_mesh_and_accumulation_and_layer_loop_together(self):
        c = config(penalty=PENALTIES["mean"], accumulation=2, scan_layers=True, remat=True)
        check_same(base("mean"), run(c, make_mesh("replica=2,fsdp=2,tensor=2")))

    @pytest.mark.parametrize("option", [{"scan_layers": True}, {"remat": True}])
    def test_on_how_layers_run(self, option: dict[str, Any]):
        check_same(base("mean"), run(config(penalty=PENALTIES["mean"], **option)))

    def test_on_accumulation_with_spectral_norm(self):
        plain, accumulated = (run(config("sm_snorm", accumulation=k)) for k in (1, 4))
        check_same(plain, accumulated)

    def test_on_the_mesh_with_layer_norm(self):
        c = config("sm_ln_g", num_kv_heads=2)
        check_same(run(c), run(c, make_mesh("replica=2,fsdp=2,tensor=2")))


class TestLearning:
    @pytest.mark.parametrize("name", PRESETS)
    def test_every_preset_lowers_its_loss_in_twenty_steps(self, name):
        records = run(config(name), steps=20)
        assert np.isfinite(records["loss"]).all()
        assert records["loss"][-1] < records["loss"][0] - 0.01
        assert not records["nonfinite"].any()

    def test_a_diverging_net_is_counted_layer_by_layer(self):
        c = config("sm", optimizer=OptimizerConfig(learning_rate=1e4, warmup=0, clip=1e9))
        records = run(c, steps=8)
        assert not np.isfinite(records["loss"][-1])
        # The rows of layer 0: 8 sequences x 4 heads x 16 positions.
        assert records["nonfinite"][-1].max() == 8 * 4 * 16

    def test_the_penalty_moves_entropy_and_thresholds_towards_each_other(self):
        strong = PenaltyConfig(weight=100.0, tolerance=0.0)
        fast = OptimizerConfig(learning_rate=0.02, warmup=0, schedule="constant")
        records = run(config(penalty=strong, optimizer=fast, threshold=0.2), steps=20)
        assert records["penalty"][-1] < 0.5 * records["penalty"][0]

    def test_penalty_warmup_starts_at_zero_weight(self):
        late = PenaltyConfig(weight=0.1, warmup=0.5)
        off = PenaltyConfig(weight=0.0)
        a, b = (run(config(penalty=p), steps=1) for p in (late, off))
        assert a["gradient_norm"][0] == pytest.approx(b["gradient_norm"][0], rel=1e-6)
        assert a["penalty"][0] > 0


class TestOptimizer:
    @pytest.mark.parametrize(
        ("schedule", "expected"),
        [
            ("linear", {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.5, 100: 0.0}),
            ("cosine", {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.5, 100: 0.0}),
            ("constant", {0: 0.1, 9: 1.0, 10: 1.0, 55: 1.0, 100: 1.0}),
        ],
    )
    def test_schedule(self, schedule, expected):
        rate = make_schedule(OptimizerConfig(learning_rate=1.0, schedule=schedule, warmup=0.1), 100)
        for step, value in expected.items():
            assert float(np.asarray(rate(step))) == pytest.approx(value, abs=1e-6)

    @pytest.mark.parametrize(
        ("steps", "warmup"), [(10, 3), (306, 92), (333, 100), (2000, 100), (6104, 305)]
    )
    def test_short_runs_warm_up_for_longer_than_five_percent(self, steps, warmup):
        rate = make_schedule(OptimizerConfig(learning_rate=1.0), steps)
        rates = np.asarray(jax.vmap(rate)(np.arange(steps)))
        assert int(np.argmax(rates > 1 - 1e-6)) == warmup - 1

    def test_only_matrices_decay(self):
        c = config("ereg_sm_t_scfuffn", weight_reparam="weight_norm", reparam_matrices=("q",))
        params = init_state(c, one_device()).params
        mask = jax.tree_util.tree_leaves_with_path(decay_mask(params))
        decayed = {path[-1].key for path, yes in mask if yes}
        kept = {path[-1].key for path, yes in mask if not yes}
        assert decayed == {"kernel", "embedding"}
        assert kept == {"bias", "log_temperature", "threshold", "alpha", "beta", "gain"}

    def test_adamw_equals_the_formula(self):
        """Two steps, float64: clip, m / (sqrt v + eps) with bias corrections, decay on matrices."""
        c = OptimizerConfig(
            learning_rate=0.1, schedule="constant", warmup=0, b2=0.9, eps=1e-3, weight_decay=0.2
        )
        rng = np.random.default_rng(0)
        params = {"kernel": rng.standard_normal(5), "bias": rng.standard_normal(5)}
        params = {name: x.astype(np.float32) for name, x in params.items()}
        optimizer = make_optimizer(c, 10)
        state, actual = optimizer.init(params), params
        expected = {name: x.astype(np.float64) for name, x in params.items()}
        m, v = dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0)
        for t in (1, 2):
            grads = {name: rng.standard_normal(5).astype(np.float32) for name in params}
            updates: Any
            updates, state = optimizer.update(grads, state, actual)
            actual = {name: actual[name] + updates[name] for name in params}
            norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
            for name, decay in (("kernel", 0.2), ("bias", 0.0)):
                g = grads[name] / max(norm, 1.0)
                m[name] = 0.9 * m[name] + 0.1 * g
                v[name] = 0.9 * v[name] + 0.1 * g**2
                corrected = m[name] / (1 - 0.9**t), v[name] / (1 - 0.9**t)
                direction = corrected[0] / (np.sqrt(corrected[1]) + 1e-3)
                expected[name] = expected[name] - 0.1 * (direction + decay * expected[name])
        for name in params:
            np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5, atol=1e-6)


class TestMesh:
    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("fsdp=3", "mesh 'fsdp=3' has 3 devices, expected 8"),
            ("fsp=8", "unknown mesh axis 'fsp'; did you mean 'fsdp'"),
            ("fsdp=x", "mesh axis 'fsdp' needs a positive size, got 'x'"),
            ("fsdp", "mesh axis 'fsdp' needs a positive size, got ''"),
        ],
    )
    def test_bad_mesh(self, spec, message):
        with pytest.raises(ValueError, match=message):
            make_mesh(spec)

    def test_batch_that_does_not_divide(self):
        with pytest.raises(ValueError, match="divisible by replica x fsdp = 8, got 12"):
            check_batch(make_mesh("replica=4,fsdp=2"), 12, 16)

    def test_length_that_does_not_divide(self):
        with pytest.raises(ValueError, match="divisible by context = 4, got 30"):
            check_batch(make_mesh("replica=2,context=4"), 12, 30)

    def test_parameters_and_moments_are_split_alike(self):
        state = init_state(config("sm_ln_g"), make_mesh("replica=2,fsdp=2,tensor=2"))
        flat = {
            "/".join(str(getattr(p, "key", getattr(p, "name", p))) for p in path): x.sharding.spec
            for path, x in jax.tree_util.tree_leaves_with_path(state)
        }
        kernels = [spec for name, spec in flat.items() if name.endswith("attention/q/kernel")]
        assert len(kernels) == 3
        assert set(map(tuple, kernels)) == {(None, "fsdp", "tensor")}

    def test_a_matrix_that_no_rule_names(self):
        shapes = {"Dense_0": {"kernel": np.zeros((8, 4)), "bias": np.zeros(4)}}
        mesh = make_mesh("fsdp=4,tensor=2")
        with pytest.raises(ValueError, match=r"no sharding rule names 'Dense_0/kernel'.*\(8, 4\)"):
            state_sharding(mesh, shapes)
        found = state_sharding(mesh, shapes, ((r"kernel$", ("embed", "ffn")),))["Dense_0"]
        assert tuple(found["kernel"].spec) == ("fsdp", "tensor")
        assert tuple(found["bias"].spec) == (None,)

    @pytest.mark.parametrize(
        ("axes", "message"),
        [
            (("embed", "mlp"), "unknown logical axis 'mlp'"),
            (("embed", "ffn", None), r"rule of 'kernel' names axes .*, got shape \(8, 4\)"),
        ],
    )
    def test_a_rule_that_does_not_fit(self, axes, message):
        with pytest.raises(ValueError, match=message):
            state_sharding(make_mesh(), {"kernel": np.zeros((8, 4))}, (("kernel$", axes),))
