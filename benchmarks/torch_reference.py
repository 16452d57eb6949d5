"""The training steps to beat: GPT-2 small in PyTorch, with attention entropy and without.

    python -m benchmarks.torch_reference --out results
    python -m benchmarks.torch_reference --cases dense --networks sm_t_scfuffn --lengths 128 1024

Needs PyTorch, and Hugging Face transformers for the first two cases:

- published: transformers' GPT-2 with attn_implementation="eager" and output_attentions=True, and
  the penalty of Algorithm 1 (arXiv 2501.03489) from the stored T x T attentions, not compiled, as
  the published recipe does;
- hf_sdpa: transformers' GPT-2 with fused attention, torch.compile, no entropy;
- dense: the network written by hand, torch.compile, dense attention that returns entropy, the
  same penalty: the strongest rival with entropy;
- sdpa: the same network with fused attention, torch.compile, no entropy.

Every step: bf16 autocast, cross entropy of float32 logits, clipping at 1, fused AdamW with decay
on matrices only. The whole loss is one compiled graph (CUDA graphs or autotuned products can be
asked for with --mode; steps of 16,384 tokens keep the card busy without the former).
"""

import dataclasses
import gc
import importlib.metadata
import importlib.util
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import tyro

from egattn.report.table import digits, quartiles, save_table, write_table

try:
    import torch  # pyright: ignore[reportMissingImports]  # not needed by the library
except ImportError as error:
    raise SystemExit(
        f"torch_reference needs PyTorch: pip install torch transformers ({error})"
    ) from error

from benchmarks.torch_networks import Decoder, HuggingFaceGPT2, Network, Size

Case = Literal["published", "hf_sdpa", "dense", "sdpa"]
Mode = Literal["default", "max-autotune-no-cudagraphs", "reduce-overhead", "off"]

# Batches taken in turn, so that no step finds its tokens in cache.
_BATCHES = 4


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    cases: tuple[Case, ...] = ("published", "hf_sdpa", "dense")
    """Kinds of step; each compiled one takes the compiler about half a minute per length."""
    networks: tuple[Network, ...] = get_args(Network)
    """Networks; transformers' cases exist for sm_ln_g only."""
    lengths: tuple[int, ...] = (128, 512, 1024)
    """Context lengths T; the batch is tokens / T."""
    tokens: int = 16384
    """Tokens per step."""
    vocab_size: int = 50304
    num_layers: int = 12
    num_heads: int = 12
    embed_dim: int = 768
    steps: int = 100
    """Steps timed."""
    warmup: int = 8
    """Steps before, compilation among them."""
    mode: Mode = "default"
    """Mode of torch.compile."""
    seed: int = 0
    out: Path | None = None
    """Directory for torch_reference.json and torch_reference.md; default: print only."""

    def __post_init__(self):
        for length in self.lengths:
            if length < 2 or self.tokens % length:
                raise SystemExit(f"expected lengths that divide {self.tokens} tokens, got {length}")
        if self.steps < 2 or self.warmup < 1:
            raise SystemExit(f"expected steps >= 2, warmup >= 1, got {self.steps}, {self.warmup}")

    def selected(self) -> list[tuple[Network, Case, int]]:
        """Every network, case and length asked for that exists."""
        return [
            (network, case, length)
            for length in self.lengths
            for network in self.networks
            for case in self.cases
            if network == "sm_ln_g" or case in ("dense", "sdpa")
        ]


def build(config: Config, network: Network, case: Case, length: int, device: str) -> Any:
    """Returns the model of a case."""
    torch.manual_seed(config.seed)
    size = Size(length, config.vocab_size, config.num_layers, config.num_heads, config.embed_dim)
    entropy = case in ("published", "dense")
    with torch.device(device):
        if case in ("published", "hf_sdpa"):
            return HuggingFaceGPT2(size, entropy=entropy)
        return Decoder(network, size, entropy=entropy)


def make_optimizer(model: Any) -> Any:
    """Fused AdamW with weight decay on matrices only."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        # Temperatures [H, T] and thresholds [L, H] are matrices in shape alone.
        decayed = parameter.ndim == 2 and name.endswith("weight")
        (matrices if decayed else others).append(parameter)
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-4, eps=1e-8, fused=True)


def make_step(model: Any, compiled: Callable, optimizer: Any, device: str) -> Callable:
    """Returns `tokens [B, T + 1] -> cross entropy`, one optimiser step."""
    parameters = list(model.parameters())

    def step(tokens):
        with torch.autocast(device, dtype=torch.bfloat16):
            losses = compiled(tokens)
        losses.objective.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return losses.cross_entropy.detach()

    return step


def measure(config: Config, network: Network, case: Case, length: int) -> dict[str, Any]:
    """Times one case; returns its row of the table."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(config, network, case, length, device)
    compile_it = case != "published" and config.mode != "off"
    compiled = torch.compile(model, mode=config.mode, dynamic=False) if compile_it else model
    step = make_step(model, compiled, make_optimizer(model), device)
    shape = (_BATCHES, config.tokens // length, length + 1)
    batches = torch.randint(config.vocab_size, shape, device=device)
    start = time.perf_counter()
    for i in range(config.warmup):
        loss = step(batches[i % _BATCHES])
    loss = float(loss)
    first = time.perf_counter() - start
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = _timed(lambda i: step(batches[i % _BATCHES]), config.steps, device)
    low, middle, high = quartiles(times)
    row = {
        **_names(network, case, length),
        "tokens/s": round(config.tokens / middle),
        "ms": digits(1e3 * middle, 4),
        "quartiles": f"{1e3 * low:.2f} to {1e3 * high:.2f}",
        "peak GiB": "",
        "loss": digits(loss, 5),
        "warm-up s": round(first, 1),
    }
    if device == "cuda":
        row["peak GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return row


def _timed(step: Callable, count: int, device: str) -> list[float]:
    """Seconds of each step; on a GPU between events on its stream, without waiting in between."""
    if device == "cpu":
        times = [time.perf_counter()]
        for i in range(count):
            step(i)
            times.append(time.perf_counter())
        return [after - before for before, after in itertools.pairwise(times)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for i in range(count):
        step(i)
        events[i + 1].record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(events)]


def _names(network: Network, case: Case, length: int) -> dict[str, Any]:
    return {"network": network, "case": case, "T": length}


def about() -> dict[str, str]:
    """Device and versions."""
    gpu = torch.cuda.is_available()
    names = {"device": torch.cuda.get_device_name() if gpu else "cpu", "torch": torch.__version__}
    if importlib.util.find_spec("transformers"):
        names["transformers"] = importlib.metadata.version("transformers")
    return names


def main(config: Config) -> list[dict[str, Any]]:
    """Measures every case; the files are written after each, so that a time limit costs none."""
    torch.set_float32_matmul_precision("high")
    rows: list[dict[str, Any]] = []
    for names in config.selected():
        try:
            rows.append(measure(config, *names))
        except (RuntimeError, ImportError) as error:
            # Out of memory, no transformers, or a graph that this version cannot compile.
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            rows.append({**_names(*names), "failed": reason})
        print(rows[-1], flush=True)
        save_table("torch_reference", config, rows, config.out, about())
        gc.collect()
        torch._dynamo.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    write_table("torch_reference", config, rows, config.out, about())
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
