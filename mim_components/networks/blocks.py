"""The transformer block of encoders and decoder, and the initialisation of linear layers; tokens are (B, N, E)."""

from __future__ import annotations

from monai.networks.blocks.transformerblock import TransformerBlock
from torch import nn


def transformer_block(hidden_size: int, num_heads: int) -> TransformerBlock:
    """A pre-norm block with biases in q, k, v, fused attention, and an MLP of width 4E; acts on `(B, N, E)`."""
    block = TransformerBlock(hidden_size, 4 * hidden_size, num_heads, qkv_bias=True, use_flash_attention=True)
    # MONAI creates this norm even without cross-attention; unused parameters break DDP and are dead weight
    block.register_module("norm_cross_attn", nn.Identity())
    return block


def init_linear(module: nn.Module) -> None:
    """Initialise linear layers as usual for transformers: Xavier-uniform weights, zero biases; for `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
