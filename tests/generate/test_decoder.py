"""Generation by decoders with a cache, against the decoder itself without one."""

import dataclasses
import functools
import inspect
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egattn.cli import main
from egattn.data import load_tokenizer
from egattn.generate import BeamSearch, JointNucleus, Sampling, generate
from egattn.model import PRESETS, Decoder, DecoderConfig
from egattn.sharding import make_mesh
from egattn.train.config import TrainConfig
from egattn.train.evaluate import load_state
from tests.training import egattn

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "context_length": 16,
    "num_layers": 2,
    "num_heads": 4,
    "embed_dim": 16,
    "init_std": 0.2,
    "scan_layers": True,
}
CONFIGS = {name: DecoderConfig.preset(name, **SMALL) for name in PRESETS} | {
    "grouped heads, mixed layers": DecoderConfig(
        **SMALL, num_kv_heads=2, feed_forward=("mlp", "none"), temperature=0.7, tie_embeddings=False
    )
}
PROMPTS = [[3, 1, 4, 1, 5, 9], [2], [6, 5, 3]]
NEW = 8


def network(config: DecoderConfig) -> tuple[Decoder, dict[str, Any]]:
    model = Decoder(config)
    tokens = jnp.zeros((1, config.context_length), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), tokens)

    def moved(path, x):
        # Temperatures and slopes away from equal ones.
        key = jax.random.fold_in(jax.random.key(1), x.size)
        return x + 0.1 * jax.random.normal(key, x.shape) if path[0].key == "params" else x

    return model, jax.tree_util.tree_map_with_path(moved, variables)


@functools.partial(jax.jit, static_argnums=0)
def apply(model: Decoder, variables, tokens):
    return model.apply(variables, tokens)


def without_cache(model: Decoder, variables, prompt: list[int], tokens: np.ndarray):
    """Log-probability and token entropies of a continuation, and entropies of its attention."""
    row = np.zeros((1, model.config.context_length), np.int32)
    whole = [*prompt, *tokens]
    row[0, : len(whole)] = whole
    logits, entropy = apply(model, variables, row)
    first, last = len(prompt) - 1, len(whole) - 1
    log_p = np.asarray(jax.nn.log_softmax(logits[0, first:last]), np.float64)
    picked = log_p[np.arange(len(tokens)), tokens]
    # [layers, batch, heads, length] -> [new, layers, heads]
    attention = np.moveaxis(np.asarray(entropy)[:, 0, :, first + 1 : last], 2, 0)
    return picked.sum(), -(np.exp(log_p) * log_p).sum(-1), attention


def check_against_no_cache(model: Decoder, variables, prompts, made, paths: int) -> None:
    """All that is told about paths is what the decoder says of them without a cache."""
    for row, prompt in enumerate(prompts):
        assert len({tuple(tokens) for tokens in np.asarray(made.tokens[row])}) == paths
        for path in range(paths):
            length = int(made.lengths[row, path])
            tokens = np.asarray(made.tokens[row, path, :length])
            total, token_entropy, attention = without_cache(model, variables, prompt, tokens)
            assert made.log_probability[row, path] == pytest.approx(total, abs=1e-4)
            found = np.asarray(made.token_entropy[row, path, :length])
            np.testing.assert_allclose(found, token_entropy, atol=2e-5)
            found = np.asarray(made.attention_entropy[row, path, : length - 1])
            np.testing.assert_allclose(found, attention, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_paths_that_change_places_are_what_the_decoder_says_of_them(name):
    """Prompts of several lengths, paths reordered at every step."""
    model, variables = network(CONFIGS[name])
    method = JointNucleus(3, p=1.0)
    made = generate(model, variables, PROMPTS, method, max_new_tokens=NEW, eos=7, seed=5)
    check_against_no_cache(model, variables, PROMPTS, made, 3)


@pytest.mark.parametrize("prompts", [PROMPTS, [[2], [5]]], ids=["ragged", "one token"])
@pytest.mark.parametrize(
    ("method", "options", "paths"),
    [
        (Sampling(), {"num_samples": 3}, 3),
        (BeamSearch(4, num_return_sequences=4), {}, 4),
        # More than share a table.
        (BeamSearch(20, num_return_sequences=20), {}, 20),
    ],
    ids=["samples", "beams", "many beams"],
)
def test_however_paths_keep_their_keys(grouped, method, options, paths, prompts):
    model, variables = grouped
    made = generate(model, variables, prompts, method, max_new_tokens=NEW, seed=5, **options)
    check_against_no_cache(model, variables, prompts, made, paths)


def test_bfloat16(grouped):
    model, variables = grouped
    low = Decoder(dataclasses.replace(model.config, dtype="bfloat16"))
    made = generate(low, variables, PROMPTS, BeamSearch(4), max_new_tokens=NEW)
    for row, prompt in enumerate(PROMPTS):
        tokens = np.asarray(made.tokens[row, 0])
        total, _, attention = without_cache(low, variables, prompt, tokens)
        assert made.log_probability[row, 0] == pytest.approx(total, abs=0.1)
        np.testing.assert_allclose(made.attention_entropy[row, 0, :-1], attention, atol=0.05)


@pytest.fixture(scope="module")
def grouped():
    return network(CONFIGS["grouped heads, mixed layers"])


@pytest.fixture(scope="module")
def ereg():
    return network(CONFIGS["ereg_sm_t_scfuffn"])


def test_greedy_takes_the_largest_logit_step_by_step(ereg):
    model, variables = ereg
    made = generate(model, variables, PROMPTS, Sampling(0.0), max_new_tokens=NEW)
    for row, prompt in enumerate(PROMPTS):
        tokens = list(prompt)
        for _ in range(NEW):
            padded = np.zeros((1, 16), np.int32)
            padded[0, : len(tokens)] = tokens
            tokens.append(int(apply(model, variables, padded).logits[0, len(tokens) - 1].argmax()))
        assert np.asarray(made.tokens[row, 0]).tolist() == tokens[len(prompt) :]


def test_one_beam_is_greedy_and_more_beams_find_no_less(ereg):
    model, variables = ereg
    greedy = generate(model, variables, PROMPTS, Sampling(0.0), max_new_tokens=NEW)
    one = generate(model, variables, PROMPTS, BeamSearch(1), max_new_tokens=NEW)
    np.testing.assert_array_equal(one.tokens, greedy.tokens)
    # All pairs of two steps: an exhaustive search.
    many = generate(model, variables, PROMPTS, BeamSearch(50), max_new_tokens=2)
    for row, prompt in enumerate(PROMPTS):
        best = max(
            without_cache(model, variables, prompt, np.array([first, second]))[0]
            for first in range(50)
            for second in range(50)
        )
        assert many.log_probability[row, 0] == pytest.approx(best, abs=1e-4)


def test_a_prompt_s_continuation_depends_neither_on_other_prompts_nor_on_padding(ereg):
    model, variables = ereg
    together = generate(model, variables, PROMPTS, Sampling(), max_new_tokens=NEW, seed=3)
    alone = generate(model, variables, PROMPTS[:1], Sampling(), max_new_tokens=NEW, seed=3)
    np.testing.assert_array_equal(alone.tokens[0], together.tokens[0])
    samples = generate(
        model, variables, PROMPTS, Sampling(), max_new_tokens=NEW, num_samples=3, seed=3
    )
    np.testing.assert_array_equal(samples.tokens[:, :1], together.tokens)
    assert len({tuple(np.asarray(x)) for x in samples.tokens[0]}) == 3


def test_other_numbers_need_no_other_program(ereg):
    from egattn.generate.generate import _run

    programs: Any = _run
    model, variables = ereg
    one = generate(model, variables, PROMPTS, Sampling(0.5, top_p=0.9), max_new_tokens=NEW)
    before = programs._cache_size()
    other = generate(
        model, variables, PROMPTS, Sampling(jnp.float32(2.0), top_p=0.8), max_new_tokens=NEW
    )
    assert programs._cache_size() == before
    assert (np.asarray(one.tokens) != np.asarray(other.tokens)).any()


def test_weights_that_are_not_finite_are_said(ereg):
    model, variables = ereg
    broken = jax.tree.map(lambda x: x * jnp.nan, variables)
    for method in (Sampling(), BeamSearch(2), JointNucleus(2)):
        with pytest.raises(FloatingPointError, match="logits are not finite"):
            generate(model, broken, PROMPTS, method, max_new_tokens=2)


def test_stochastic_beams_are_exact_beyond_64_tokens():
    """The most frequent of single paths are the model's own shares, of all tokens."""
    config = DecoderConfig.preset("sm_ln_g", **{**SMALL, "vocab_size": 100, "init_std": 1e-4})
    model, variables = network(config)
    rules = JointNucleus(1, mode="sbs", p=1.0, final="sample")
    made = generate(model, variables, [[1]] * 2000, rules, max_new_tokens=1)
    details: Any = made.details
    assert np.asarray(details.exact).all()
    # 2000 draws of 100 tokens of nearly equal chances: 64 would be all if 64 were considered.
    assert len(set(np.asarray(made.tokens).ravel().tolist())) > 90


def test_beyond_the_trained_positions(ereg):
    model, variables = ereg
    prompt = [[1] * 14]
    # 14 and 3 new tokens, of which the last is not read.
    made = generate(model, variables, prompt, Sampling(0.0), max_new_tokens=3)
    with pytest.raises(ValueError, match="take 17 positions, the decoder has 16"):
        generate(model, variables, prompt, Sampling(0.0), max_new_tokens=4)
    longer = generate(model, variables, prompt, Sampling(0.0), max_new_tokens=9, beyond="last")
    np.testing.assert_array_equal(longer.tokens[..., :3], made.tokens)
    # The same network with more positions, whose temperatures and embeddings repeat the last.
    params = jax.tree.map(lambda x: x, variables["params"])
    embedding = params["position_embedding"]["embedding"]
    more = jnp.concatenate([embedding, jnp.repeat(embedding[-1:], 16, 0)])
    params["position_embedding"] = {"embedding": more}
    attention = params["blocks_0"]["attention"]
    t = attention["log_temperature"]
    attention["log_temperature"] = jnp.concatenate([t, jnp.repeat(t[..., -1:], 16, -1)], -1)
    config = DecoderConfig.preset("ereg_sm_t_scfuffn", **{**SMALL, "context_length": 32})
    wide = generate(Decoder(config), {"params": params}, prompt, Sampling(0.0), max_new_tokens=9)
    np.testing.assert_array_equal(wide.tokens, longer.tokens)
    np.testing.assert_allclose(wide.log_probability, longer.log_probability, atol=1e-4)


def test_tokens_are_told_while_they_are_generated(ereg):
    model, variables = ereg
    told: list[int] = []
    made = generate(
        model,
        variables,
        PROMPTS[:1],
        Sampling(),
        max_new_tokens=NEW,
        on_tokens=lambda tokens: told.append(int(tokens[0, 0])),
    )
    jax.effects_barrier()
    assert told == np.asarray(made.tokens[0, 0, :-1]).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": [[1], []]}, "got an empty one"),
        ({"prompts": [[50]]}, "prompt: expected tokens of 0 to 49, got 50"),
        ({"prompts": [[-1]]}, "prompt: expected tokens of 0 to 49, got -1"),
        ({"eos": [3, 50]}, "eos: expected tokens of 0 to 49, got 50"),
        ({"pad": -1}, "pad: expected tokens of 0 to 49, got -1"),
        ({"method": BeamSearch(2, length_penalty=float("nan"))}, "length_penalty must be finite"),
        ({"method": JointNucleus(length_exponent=float("inf"))}, "length_exponent must be finite"),
        ({"prompts": [[1] * 17]}, "take 20 positions"),
        (
            {"method": Sampling(-0.5)},
            "temperature must be 0 or at least 1e-30, and finite, got -0.5",
        ),
        ({"method": Sampling(top_k=51)}, "top_k must be between 1 and 50"),
        ({"method": Sampling(top_p=0.0)}, "top_p must be in"),
        ({"method": BeamSearch(51)}, "num_beams must be between 1 and 50"),
        ({"method": JointNucleus(0)}, "num_paths must be at least 1"),
        ({"method": JointNucleus(num_candidates=51)}, "num_candidates must be between 1 and 50"),
        ({"method": BeamSearch(2), "num_samples": 2}, "num_samples is for sampling"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"beyond": "wrap"}, "unknown choice of beyond"),
    ],
)
def test_bad_arguments_are_named(ereg, change, message):
    arguments: dict[str, Any] = {
        "prompts": [[1]],
        "method": Sampling(),
        "max_new_tokens": 4,
        **change,
    }
    # As for users, whom no type checker comes before.
    unchecked = inspect.unwrap(generate)
    with pytest.raises(ValueError, match=message):
        unchecked(*ereg, **arguments)


class TestCommandLine:
    def test_a_sample_is_prompt_and_continuation_of_the_same_seed(self, finished, capsys):
        command = ["generate", str(finished), "def f(x):", "--max-new-tokens", "12"]
        main(command)
        streamed = capsys.readouterr().out
        assert streamed.startswith("def f(x):")
        main([*command, "--json"])
        found = json.loads(capsys.readouterr().out)["prompts"][0]["continuations"][0]
        assert streamed == f"def f(x):{found['text']}\n"
        config = TrainConfig.read(finished)
        state = load_state(config, make_mesh("replica=1", jax.devices()[:1]))
        tokenizer = load_tokenizer(config.data / "tokenizer.json")
        prompt = tokenizer.encode("def f(x):").ids
        total, entropy, attention = without_cache(
            Decoder(config.model), {"params": state.params}, prompt, np.array(found["tokens"])
        )
        assert found["log_probability"] == pytest.approx(total, abs=1e-4)
        np.testing.assert_allclose(found["token_entropy"], entropy, atol=2e-5)
        np.testing.assert_allclose(found["attention_entropy"], attention, atol=1e-5)

    @pytest.mark.parametrize("method", ["beam", "beam-sample", "joint"])
    def test_several_prompts_and_paths(self, finished, method, capsys):
        options = f"--method {method} --num-paths 2 --max-new-tokens 4 --report"
        main(["generate", str(finished), "import ", "x", *options.split()])
        text = capsys.readouterr().out
        for heading in (
            "--- 1.1, log-probability",
            "--- 2.2, log-probability",
            ", chosen\nimport ",
        ):
            assert heading in text
        # A heading and a line per token of two chosen paths.
        assert len(text.partition("token  entropy")[2].splitlines()) == 9

    def test_bad_input(self, finished, tmp_path, capsys):
        for command, message in (
            ("generate {0}", "at least one prompt"),
            ("generate {1} x", "is not a run directory"),
            ("generate {0} x --max-new-tokens 40", "positions, the decoder has 32"),
            (
                "generate {0} x --max-new-tokens 4 --temperature -1",
                "temperature must be 0 or at least 1e-30, and finite",
            ),
            (
                "generate {0} x --max-new-tokens 4 --method joint --temperature 0",
                "temperature must be at least 1e-30",
            ),
            (
                "generate {0} x --max-new-tokens 4 --method joint --mode sbs --top-p 0.5",
                "p must be 1",
            ),
            ("generate {0} x --max-new-tokens 4 --num-samples 0", "num_samples must be at least 1"),
            (
                "generate {0} x --max-new-tokens 4 --method beam --num-paths 513",
                "between 1 and 512",
            ),
            ("generate {0} x --data {1}", "tokenizer.json"),
            ("generate {0} x --methd beam", "--method"),
        ):
            with pytest.raises(SystemExit, match="2"):
                egattn(command, finished, tmp_path)
            assert message in capsys.readouterr().err
        with pytest.raises(SystemExit, match="2"):
            main(["generate", str(finished), "", "--max-new-tokens", "4"])
        assert "at least one token, got an empty one" in capsys.readouterr().err
