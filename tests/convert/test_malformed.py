"""What is damaged, hostile or not expressible is refused in one line, and nothing is made."""

import json
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egattn.convert import ConvertConfig, convert
from egattn.convert import gpt2 as mapping
from egattn.convert.weights import Weights, read_json
from egattn.model import DecoderConfig
from tests.hugging_face import CONFIG, gpt2, write, write_shards, write_tokenizer

SMALL = CONFIG | {"n_layer": 1, "n_embd": 4, "n_head": 2, "n_positions": 4, "vocab_size": 8}
TENSORS = gpt2(SMALL)
FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


def refused(source: Path, match: str, error: type[Exception] = ValueError) -> None:
    """Conversion fails with one line, and makes nothing."""
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(error, match=match) as caught:
        convert(ConvertConfig(source, source.parent / "run"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert sorted(source.parent.rglob("*")) == before


def entry(start: int, end: int, shape=None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape or [1], "data_offsets": [start, end]}


def file_of(header: Any, body: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + body


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "gpt2", SMALL, TENSORS)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "llama"}, "expected model_type 'gpt2', got 'llama'"),
        ({"model_type": None}, "expected model_type 'gpt2', got None"),
        ({"activation_function": "gelu"}, "activation_function must be one of gelu_new, .*'gelu'"),
        ({"activation_function": ["relu"]}, "activation_function must be one of"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon must be 1e-05, got 1e-06"),
        ({"add_cross_attention": True}, "add_cross_attention must be False, got True"),
        ({"quantization_config": {"bits": 4}}, "cannot express quantization_config"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "cannot express auto_map"),
        ({"pruned_heads": {"0": [1]}}, "cannot express pruned_heads"),
        ({"scale_attn_weights": "yes"}, "scale_attn_weights must be true or false, got 'yes'"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false, got 1"),
        ({"n_head": 3}, "num_heads must divide embed_dim, got 3 and 4"),
        ({"n_head": 0}, "n_head must be an integer from 1"),
        ({"n_embd": "4"}, "n_embd must be an integer from 1 to .*got '4'"),
        ({"n_layer": 2**40}, "n_layer must be an integer from 1 to 4096"),
        ({"n_layer": 4000}, "n_layer is 4000, but there are only 16 tensors"),
        ({"n_layer": 2}, r"expected tensor transformer.h.1.attn.c_attn.bias, got none \(12 are"),
        ({"n_inner": 0}, "n_inner must be an integer from 1"),
        ({"n_inner": 8}, r"c_fc.weight has shape \[4, 16\], expected \[4, 8\]"),
        ({"n_positions": 2**24}, r"wpe.weight has shape \[4, 4\], expected \[16777216, 4\]"),
        ({"vocab_size": 9}, r"wte.weight has shape \[8, 4\], expected \[9, 4\]"),
        ({"tie_word_embeddings": False}, "expected tensor lm_head.weight, got none"),
    ],
)
def test_configs_that_cannot_be_expressed(tmp_path, changes, match):
    refused(write(tmp_path / "gpt2", SMALL | changes, TENSORS), match)


@pytest.mark.parametrize("name", ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"])
def test_configs_without_a_size(tmp_path, name):
    config = {key: value for key, value in SMALL.items() if key != name}
    refused(write(tmp_path / "gpt2", config, TENSORS), f"{name} must be an integer .*, got None")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "config.json is not well-formed"),
        (b"[" * 200_000, "config.json is not well-formed"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "config.json is not well-formed"),
        (b"\xff\xfe\x00", "config.json is not well-formed"),
        (b"[]", r"expected a JSON object, got \[\]"),
        (b"null", "expected a JSON object, got None"),
        (b'{"model_type": "gpt2", "model_type": "egattn"}', "name 'model_type' occurs twice"),
        (b" " * (2**24 + 1), "has 16777217 bytes, expected at most 16777216"),
    ],
)
def test_configs_that_are_no_json_object(source, text, match):
    (source / "config.json").write_bytes(text)
    refused(source, match)


def test_missing_files(tmp_path):
    directory = tmp_path / "gpt2"
    refused(directory, "expected config.json in .*gpt2, got no such file", FileNotFoundError)
    directory.mkdir()
    refused(directory, "expected config.json in .*gpt2, got no such file", FileNotFoundError)
    (directory / "config.json").write_text(json.dumps(SMALL))
    refused(directory, "expected model.safetensors or model.safetensors.index", FileNotFoundError)


def test_an_existing_target_is_left_alone(source, tmp_path):
    (tmp_path / "run").mkdir()
    refused(source, "run exists", FileExistsError)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was read",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickles_are_not_read(source, name):
    (source / FILE).unlink()
    (source / name).write_bytes(pickle.dumps(Bomb()))
    refused(source, f"{name} is a pickle, which may run any code when read")


def test_a_pickle_under_another_name(source):
    (source / FILE).write_bytes(pickle.dumps(Bomb()) * 100)
    refused(source, "not in safetensors format")


FULL = file_of({"a": entry(0, 4)}, bytes(4))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not in safetensors format, or truncated"),
        (b"1234567", "not in safetensors format, or truncated"),
        (FULL[:20], "not in safetensors format, or truncated"),
        (FULL[:-1], "incomplete metadata, file not fully covered"),
        (FULL + b"1", "incomplete metadata, file not fully covered"),
        (file_of(b"{}", size=2**63), "not in safetensors format, or truncated"),
        (file_of(b"{}", size=2**24 + 1), "not in safetensors format, or truncated"),
        (file_of(b"{}   ", size=2**64 - 1), "not in safetensors format, or truncated"),
        (file_of(b"[" * 100_000), "invalid JSON in header"),
        (file_of({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)), "invalid offset"),
        (file_of({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6)), "invalid offset"),
        (file_of({"a": entry(0, 4), "b": entry(4, 99)}, bytes(8)), "Error while"),
        (file_of({"a": entry(4, 0)}, bytes(4)), "Error while"),
        (file_of({"a": entry(0, 2**63)}, bytes(4)), "Error while"),
        (file_of({"a": entry(0, 4, [2**40, 2**40])}, bytes(4)), "overflow"),
        (file_of({"a": entry(0, 4, [-1])}, bytes(4)), "invalid JSON in header"),
        (file_of({"a": entry(0, 4, [2])}, bytes(4)), "Error while"),
        (file_of({"a": entry(0, 4, [1], "F31")}, bytes(4)), "unknown variant `F31`"),
        (file_of({"a": 1}), "invalid JSON in header"),
        (file_of({"a\n\x1b" * 999: entry(0, 4), "b": entry(2, 6)}, bytes(6)), "invalid offset"),
        (
            file_of(json.dumps({"a": entry(0, 4)})[:-1].encode() + b"," + FULL[9:-4], bytes(4)),
            "the name 'a' occurs twice",
        ),
    ],
)
def test_damaged_files(source, content, match):
    (source / FILE).write_bytes(content)
    refused(source, match)


def test_every_truncation(source):
    content = (source / FILE).read_bytes()
    for size in [*range(0, 64), *range(64, len(content), 97)]:
        (source / FILE).write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"truncated|incomplete"):
            Weights(source)


def changed(name: str, value: np.ndarray | None) -> dict[str, np.ndarray]:
    rest = {key: x for key, x in TENSORS.items() if key != name}
    return rest if value is None else rest | {name: value}


WTE, BIAS = "transformer.wte.weight", "transformer.h.0.attn.c_attn.bias"


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        (changed(BIAS, None), f"expected tensor {BIAS}, got none \\(1 are missing\\)"),
        (changed("score.weight", np.zeros(2, np.float32)), "got also 'transformer.score.weight'"),
        (changed("../../x\n", np.zeros(2, np.float32)), r"got also 'transformer\.\.\./\.\./x\\n'"),
        (changed("y" * 5000, np.zeros(2, np.float32)), "got also 'transformer.yyyy"),
        (changed(BIAS, np.zeros(11, np.float32)), r"has shape \[11\], expected \[12\]"),
        (changed(BIAS, np.zeros((12, 1), np.float32)), r"has shape \[12, 1\], expected \[12\]"),
        (changed(WTE, TENSORS[WTE].T.copy()), r"has shape \[4, 8\], expected \[8, 4\]"),
        (changed(BIAS, np.zeros(12, np.float64)), "is F64, expected one of F32, F16, BF16"),
        (changed(BIAS, np.zeros(12, np.int8)), "is I8, expected one of F32, F16, BF16"),
        (changed(BIAS, np.full(12, np.nan, np.float32)), "12 numbers that are not finite"),
        (changed(BIAS, np.full(12, np.inf, np.float16)), "12 numbers that are not finite"),
        (changed("h.0.attn.c_attn.bias", np.zeros(12, np.float32)), f"'{BIAS}' occurs twice"),
        (changed("lm_head.weight", TENSORS[WTE] + 1), "lm_head.weight is not the token embedding"),
        ({}, "n_layer is 1, but there are only 0 tensors"),
    ],
)
def test_tensors_that_are_not_those_of_the_config(tmp_path, tensors, match):
    refused(write(tmp_path / "gpt2", SMALL, tensors), match)


class TestShards:
    @pytest.fixture
    def source(self, tmp_path):
        return write_shards(tmp_path / "gpt2", SMALL, TENSORS)

    def rewrite(self, source: Path, **weight_map: Any) -> None:
        index = json.loads((source / INDEX).read_text())
        index["weight_map"] |= weight_map
        (source / INDEX).write_text(json.dumps(index))

    @pytest.mark.parametrize(
        "file",
        [
            *(
                "../model.safetensors",
                "/etc/passwd",
                "..",
                "",
                "a/b.safetensors",
                "a\0.safetensors",
            ),
            *(".safetensors", "..safetensors", "a\\b.safetensors", "é.safetensors", "model.bin"),
            *("a.safetensors\n", 1, None, ["model.safetensors"], {}),
        ],
    )
    def test_files_elsewhere(self, source, file):
        (source.parent / FILE).write_bytes(b"not to be read")
        self.rewrite(source, **{WTE: file})
        refused(source, "expected a file of this directory, got ")

    @pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["a"]}])
    def test_indices_without_a_map(self, source, index):
        (source / INDEX).write_text(json.dumps(index))
        refused(source, "expected weight_map to name tensors")

    def test_a_name_twice(self, source):
        text = (source / INDEX).read_text()
        (source / INDEX).write_text(text.replace(BIAS, WTE))
        refused(source, "occurs twice")

    def test_a_missing_file(self, source):
        (source / "model-00002-of-00003.safetensors").unlink()
        refused(source, "names model-00002-of-00003.safetensors, which is", FileNotFoundError)

    def test_a_tensor_in_another_file(self, source):
        index = json.loads((source / INDEX).read_text())["weight_map"]
        other = next(file for file in index.values() if file != index[WTE])
        self.rewrite(source, **{WTE: other})
        refused(source, f"{INDEX} and .* disagree about tensor '{WTE}'")

    def test_a_tensor_that_the_index_does_not_name(self, source):
        index = json.loads((source / INDEX).read_text())
        del index["weight_map"][WTE]
        (source / INDEX).write_text(json.dumps(index))
        refused(source, f"{INDEX} and .* disagree about tensor '{WTE}'")


@pytest.mark.parametrize("rows", [300, 420])
def test_a_tokenizer_with_more_or_fewer_tokens_than_the_embedding_has_rows(tmp_path, rows):
    config = SMALL | {"vocab_size": rows}
    source = write(tmp_path / "gpt2", config, gpt2(config))
    write_tokenizer(source, 400)
    refused(source, f"has 400 tokens, but config.json has vocab_size {rows}")


def test_a_tokenizer_that_is_none(source):
    (source / "tokenizer.json").write_text("{}")
    refused(source, "tokenizer.json is not a tokenizer")


OWN: dict[str, Any] = {
    "model_type": "egattn",
    "preset": "sm",
    "model": {**vars(DecoderConfig(8, 4, 1, 2, None, 4, pre_norm="none"))},
}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_layers": 10**12}, "num_layers must lie within 1 to 16, got 1000000000000"),
        ({"embed_dim": 2**60}, "embed_dim must lie within 1 to 16777216"),
        ({"hidden_dim": -4}, "hidden_dim must lie within 1 to 16777216, got -4"),
        ({"num_heads": 3}, "num_heads must divide embed_dim"),
        ({"pre_norm": "batch"}, "pre_norm"),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({}, r"expected 'final_norm.bias' of shape \(4,\), got None"),
    ],
)
def test_own_configs(tmp_path, changes, match):
    config = OWN | {"model": OWN["model"] | changes}
    refused(write(tmp_path / "gpt2", config, TENSORS), match)
    without = {name: value for name, value in config.items() if name != "model"}
    refused(write(tmp_path / "other", without, TENSORS), "model: expected an object, got None")


def test_a_step_of_what_is_no_run(source, tmp_path):
    with pytest.raises(ValueError, match="step is for run directories"):
        convert(ConvertConfig(source, tmp_path / "run", step=3))


CONTENT = file_of(
    {"__metadata__": {"format": "pt"}, "a": entry(0, 8, [2]), "b": entry(8, 12, [2], "F16")},
    bytes(12),
)
fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)


def attempt(read) -> Any:
    """What reading gives, or None where it is refused in one line; without much memory."""
    tracemalloc.start()
    refusal = ""
    try:
        return read()
    except (ValueError, FileNotFoundError) as error:
        refusal = str(error)
        return None
    finally:
        assert tracemalloc.get_traced_memory()[1] < 2**24
        assert len(refusal.splitlines()) < 2
        tracemalloc.stop()


@fuzz
@given(
    edits=st.lists(st.tuples(st.integers(0, len(CONTENT)), st.binary(max_size=9)), max_size=4),
    cut=st.integers(0, len(CONTENT)) | st.none(),
)
def test_any_damage_to_a_file(tmp_path, edits, cut):
    content = CONTENT
    for place, replacement in edits:
        content = content[:place] + replacement + content[place + len(replacement) :]
    (tmp_path / FILE).write_bytes(content[:cut])
    weights = attempt(lambda: Weights(tmp_path))
    for name in weights.tensors if weights else ():
        value = attempt(lambda name=name: weights.read(name))
        assert value is None or value.shape == weights.tensors[name].shape


numbers = st.integers(-3, 20) | st.sampled_from([2**31, 2**63, 2**64, -(2**63)])
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
dtypes = st.sampled_from(["F32", "F16", "BF16", "F64", "I8", "BOOL", "F8_E4M3", "F4", "C64", "x"])
entries = st.fixed_dictionaries(
    {"dtype": dtypes, "shape": st.lists(numbers, max_size=3)},
    optional={"data_offsets": st.lists(numbers, max_size=3), "more": json_values},
)


@fuzz
@given(st.dictionaries(st.text(max_size=3), entries | json_values, max_size=3), st.binary())
def test_any_header(tmp_path, header, body):
    (tmp_path / FILE).write_bytes(file_of(header, body))
    weights = attempt(lambda: Weights(tmp_path))
    for name in weights.tensors if weights else ():
        value = attempt(lambda name=name: weights.read(name))
        assert value is None or value.shape == weights.tensors[name].shape


@fuzz
@given(st.dictionaries(st.sampled_from([*SMALL, "quantization_config"]), json_values))
def test_any_config(tmp_path, changes):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL | changes))
    values = attempt(lambda: read_json(path))
    found = attempt(lambda: mapping.read_config(values, path))
    if found is not None:
        assert found[0].num_heads == values["n_head"]
        assert values.get("layer_norm_epsilon", 1e-5) == 1e-5
        assert not values.get("quantization_config")


@fuzz
@given(st.binary() | json_values.map(lambda x: json.dumps(x).encode()))
def test_any_index(tmp_path, text):
    (tmp_path / INDEX).write_bytes(text)
    assert attempt(lambda: Weights(tmp_path)) is None
