"""Converted decoders against PyTorch's GPT-2 of transformers, in both directions."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.converted_runs import apply, back, make_run, same, to_run
from tests.hugging_face import read, write_tokenizer

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch", reason="PyTorch is not installed: it is only an oracle")
transformers = pytest.importorskip("transformers", reason="transformers is only an oracle")

SMALL = {"vocab_size": 400, "n_positions": 32, "n_embd": 48, "n_layer": 3, "n_head": 4}
SMALL |= {"bos_token_id": 0, "eos_token_id": 0}
VARIANTS: dict[str, dict[str, Any]] = {
    "gelu": {},
    "relu": {"activation_function": "relu"},
    "linear": {"activation_function": "linear"},
    "separate head": {"tie_word_embeddings": False},
    "hidden width": {"n_inner": 80},
    "scores over layers": {"scale_attn_by_inverse_layer_idx": True},
    "plain scores": {"scale_attn_weights": False},
    "upcast": {"reorder_and_upcast_attn": True},
}


def random_gpt2(config: dict[str, Any], std: float = 0.2, dtype=torch.float32):
    """GPT-2 with every parameter random, biases and norms among them."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(parameter.ndim == 1)
            parameter.add_(torch.randn(parameter.shape, generator=generator) * std)
    return model.to(dtype).eval()


def outputs(model, tokens: np.ndarray):
    """Logits, and entropies of the probabilities that transformers returns, all in float64.

    In float32 where transformers insists on it.
    """
    exact = copy.deepcopy(model)
    if not model.config.reorder_and_upcast_attn:
        exact = exact.double()
    exact.set_attn_implementation("eager")
    with torch.no_grad():
        output = exact(torch.from_numpy(tokens).long(), output_attentions=True)
    p = np.stack([x.numpy() for x in output.attentions]).astype(np.float64)
    entropy = -(p * np.log(p, out=np.zeros_like(p), where=p > 0)).sum(-1)
    return output.logits.numpy(), entropy


def loaded(directory: Path):
    """What transformers makes of a directory, and nothing of it may be missing or left over."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.float().eval()


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_entropies(tmp_path, rng, variant):
    model = random_gpt2(SMALL | VARIANTS[variant])
    model.save_pretrained(tmp_path / "gpt2")
    tokens = rng.integers(0, 400, (2, 32)).astype(np.int32)
    logits, entropy = apply(to_run(tmp_path / "gpt2"), tokens)
    expected_logits, expected_entropy = outputs(model, tokens)
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=1e-4)
    np.testing.assert_allclose(entropy, expected_entropy, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_gpt2_small(tmp_path, rng):
    """The full shape, 124 M parameters, at the scale of trained ones."""
    model = random_gpt2({}, std=0.03)
    model.save_pretrained(tmp_path / "gpt2")
    tokens = rng.integers(0, 50257, (1, 32)).astype(np.int32)
    logits, entropy = apply(to_run(tmp_path / "gpt2"), tokens)
    expected_logits, expected_entropy = outputs(model, tokens)
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=1e-4)
    np.testing.assert_allclose(entropy, expected_entropy, rtol=0, atol=1e-5)
    assert same(read(back(tmp_path / "run"))[1], read(tmp_path / "gpt2")[1])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("size", ["1GB", "50KB"])
def test_there_and_back(tmp_path, dtype, size):
    """Sharded or not, what comes back is what transformers would write in one file."""
    model = random_gpt2(SMALL, dtype=getattr(torch, dtype))
    model.save_pretrained(tmp_path / "gpt2", max_shard_size=size)
    model.save_pretrained(tmp_path / "whole")
    target = back(to_run(tmp_path / "gpt2"))
    for file in ("model.safetensors", "config.json", "generation_config.json"):
        assert (target / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize("preset", ["sm_ln_g", "sm_ln_r", "sm_ln"])
def test_transformers_loads_what_we_trained(tmp_path, rng, preset):
    make_run(tmp_path / "run", preset)
    tokens = rng.integers(0, 300, (2, 16)).astype(np.int32)
    logits, entropy = apply(tmp_path / "run", tokens)
    expected_logits, expected_entropy = outputs(loaded(back(tmp_path / "run")), tokens)
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=1e-4)
    np.testing.assert_allclose(entropy, expected_entropy, rtol=0, atol=1e-5)


def test_transformers_refuses_what_gpt2_does_not_have(tmp_path):
    make_run(tmp_path / "run", "sm_scfuffn")
    with pytest.raises(ValueError, match="model type `egattn`"):
        loaded(back(tmp_path / "run"))


def test_transformers_loads_the_tokenizer(tmp_path):
    import dataclasses

    from egattn._config import to_json
    from egattn.data.manifest import sha256_file

    config = make_run(tmp_path / "run", "sm_ln_g", vocab_size=400)
    (tmp_path / "data").mkdir()
    write_tokenizer(tmp_path / "data", 400)
    checksum = sha256_file(tmp_path / "data" / "tokenizer.json")
    config = dataclasses.replace(config, data=tmp_path / "data", tokenizer_sha256=checksum)
    (tmp_path / "run" / "config.json").write_text(to_json(config))
    target = back(tmp_path / "run")
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    text = "au k\n\té 中文 🙂  b"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token_id == 0
    assert loaded(target).config.eos_token_id == 0
