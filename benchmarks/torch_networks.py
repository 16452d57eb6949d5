"""The networks of `egattn` in PyTorch, as fast as plain PyTorch writes them, and their losses.

`Decoder` is what `egattn.Decoder` computes for the presets `sm_ln_g` and `sm_t_scfuffn`, parameter
for parameter (query, key and value projections are one matrix here, which is faster). Matrix
products follow autocast; residual, norms, softmax, entropy and loss are float32.
"""

import math
from typing import Literal, NamedTuple

import torch  # pyright: ignore[reportMissingImports]  # not needed by the library
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]  # as above
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]  # as above

Network = Literal["sm_ln_g", "sm_t_scfuffn"]

INITIAL_STD = 0.02
INITIAL_TEMPERATURE = 0.1
INITIAL_THRESHOLD = 0.5
TOLERANCE = 0.2
PENALTY_WEIGHT = 0.16
# Finite, so that its product with a probability of exactly 0 is 0.
_MASKED = -1e30


class Size(NamedTuple):
    """Size of a network; the defaults are GPT-2 small."""

    context_length: int
    vocab_size: int = 50304
    num_layers: int = 12
    num_heads: int = 12
    embed_dim: int = 768


class Losses(NamedTuple):
    """Scalars of one batch, and each head's mean entropy [L, H] where entropy is known."""

    objective: Tensor
    cross_entropy: Tensor
    head_entropy: Tensor | None


def dense_attention(q: Tensor, k: Tensor, v: Tensor, row_scale) -> tuple[Tensor, Tensor]:
    """Causal attention and its entropy; q, k, v [B, H, T, D], entropy [B, H, T] float32."""
    scores = (q @ k.mT).float() * row_scale
    positions = torch.arange(q.shape[2], device=q.device)
    scores = scores.masked_fill(positions[:, None] < positions, _MASKED)
    relative = scores - scores.detach().amax(-1, keepdim=True)
    exponentials = torch.exp(relative)
    total = exponentials.sum(-1, keepdim=True)
    entropy = (torch.log(total) - (exponentials * relative).sum(-1, keepdim=True) / total)[..., 0]
    return (exponentials / total).to(v.dtype) @ v, entropy


def fused_attention(q: Tensor, k: Tensor, v: Tensor, row_scale) -> tuple[Tensor, None]:
    """Causal attention by PyTorch's fused kernel, which knows no entropy."""
    if isinstance(row_scale, Tensor):
        q, row_scale = q * row_scale.to(q.dtype), 1.0
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=row_scale), None


class Attention(nn.Module):
    """Self-attention with biases on queries and keys; optionally a temperature per head and row."""

    def __init__(self, size: Size, *, temperature: bool, entropy: bool):
        super().__init__()
        width = size.embed_dim
        self.heads = size.num_heads
        self.attend = dense_attention if entropy else fused_attention
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.qk_bias = nn.Parameter(torch.zeros(2 * width))
        self.o = nn.Linear(width, width, bias=False)
        self.log_temperature = None
        if temperature:
            start = torch.full((self.heads, size.context_length), math.log(INITIAL_TEMPERATURE))
            self.log_temperature = nn.Parameter(start)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        batch, length, width = x.shape
        bias = F.pad(self.qk_bias, (0, width))
        qkv = F.linear(x, self.qkv.weight, bias).view(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        row_scale = q.shape[-1] ** -0.5
        if self.log_temperature is not None:
            row_scale = row_scale * torch.exp(-self.log_temperature[:, :length, None])
        out, entropy = self.attend(q, k, v, row_scale)
        return self.o(out.transpose(1, 2).reshape(batch, length, width)), entropy


class Block(nn.Module):
    """Norms and a GELU feed-forward, or neither and one scaled matrix in its place."""

    def __init__(self, network: Network, size: Size, *, entropy: bool):
        super().__init__()
        width = size.embed_dim
        self.plain = network == "sm_ln_g"
        self.attention = Attention(size, temperature=not self.plain, entropy=entropy)
        if self.plain:
            self.attention_norm = nn.LayerNorm(width)
            self.ffn_norm = nn.LayerNorm(width)
            self.up = nn.Linear(width, 4 * width, bias=False)
            self.down = nn.Linear(4 * width, width, bias=False)
        else:
            self.fused = nn.Linear(width, width, bias=False)
            self.alpha = nn.Parameter(torch.ones(()))
            self.beta = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        attended, entropy = self.attention(self.attention_norm(x) if self.plain else x)
        x = x + attended
        if self.plain:
            hidden = F.gelu(self.up(self.ffn_norm(x)), approximate="tanh")
            return x + self.down(hidden), entropy
        return self.beta * x + self.fused(x) / self.alpha, entropy


class Decoder(nn.Module):
    """Decoder-only language model with a tied vocabulary projection."""

    def __init__(self, network: Network, size: Size, *, entropy: bool):
        super().__init__()
        self.token_embedding = nn.Embedding(size.vocab_size, size.embed_dim)
        self.position_embedding = nn.Embedding(size.context_length, size.embed_dim)
        blocks = [Block(network, size, entropy=entropy) for _ in range(size.num_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = nn.LayerNorm(size.embed_dim) if network == "sm_ln_g" else None
        self.threshold = None
        if entropy:
            start = torch.full((size.num_layers, size.num_heads), INITIAL_THRESHOLD)
            self.threshold = nn.Parameter(start)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_STD)

    def features(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Input of the vocabulary projection [B, T, d], and the entropy [B, H, T] per layer."""
        x = self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]
        entropies = []
        for block in self.blocks:
            x, entropy = block(x)
            if entropy is not None:
                entropies.append(entropy)
        return (x if self.final_norm is None else self.final_norm(x)), entropies

    def forward(self, tokens: Tensor) -> Losses:
        """Losses of windows [B, T + 1]."""
        hidden, entropies = self.features(tokens[:, :-1])
        logits = F.linear(hidden, self.token_embedding.weight)
        loss = next_token_loss(logits, tokens)
        if self.threshold is None:
            return Losses(loss, loss, None)
        head_entropy = torch.stack([entropy.mean((0, 2)) for entropy in entropies])
        penalty = entropy_penalty(head_entropy, self.threshold, tokens.shape[1] - 1)
        return Losses(loss + PENALTY_WEIGHT * penalty, loss, head_entropy)


class HuggingFaceGPT2(nn.Module):
    """GPT-2 of Hugging Face transformers, with the published penalty or without entropy."""

    def __init__(self, size: Size, *, entropy: bool):
        super().__init__()
        # Imported here because only these two cases need transformers.
        from transformers import (  # pyright: ignore[reportMissingImports]  # as above
            AutoModelForCausalLM,
            GPT2Config,
        )

        config = GPT2Config(
            vocab_size=size.vocab_size,
            n_positions=size.context_length,
            n_embd=size.embed_dim,
            n_layer=size.num_layers,
            n_head=size.num_heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
        implementation = "eager" if entropy else "sdpa"
        self.model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
        self.threshold = None
        if entropy:
            start = torch.full((size.num_layers, size.num_heads), INITIAL_THRESHOLD)
            self.threshold = nn.Parameter(start)

    def forward(self, tokens: Tensor) -> Losses:
        """Losses of windows [B, T + 1]."""
        output = self.model(tokens[:, :-1], output_attentions=self.threshold is not None)
        loss = next_token_loss(output.logits, tokens)
        if self.threshold is None:
            return Losses(loss, loss, None)
        head_entropy = torch.stack([stored_entropy(a).mean((0, 2)) for a in output.attentions])
        penalty = entropy_penalty(head_entropy, self.threshold, tokens.shape[1] - 1)
        return Losses(loss + PENALTY_WEIGHT * penalty, loss, head_entropy)


def stored_entropy(attention: Tensor) -> Tensor:
    """Entropy [B, H, T] of attention rows [B, H, T, T], as the published code computes it."""
    return -torch.nansum(attention * torch.log(attention + 1e-9), dim=-1)


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross entropy in float32; logits [B, T, V], tokens [B, T + 1]."""
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def entropy_penalty(head_entropy: Tensor, threshold: Tensor, length: int) -> Tensor:
    """Algorithm 1 of arXiv 2501.03489: squared deviations beyond a margin; both [L, H]."""
    ceiling = math.log(length)
    deviation = head_entropy - threshold * ceiling
    inside = deviation.abs() <= TOLERANCE * ceiling
    return torch.where(inside, 0.0, deviation**2).mean()
