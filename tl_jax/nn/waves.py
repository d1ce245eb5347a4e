# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the encoders of waveforms share: wav2vec 2.0 (Baevski et al. 2020), HuBERT and WavLM.

Convolutions turn samples into frames, a wide grouped convolution stands in for positions, and transformer blocks
follow: post-norm in the base form, pre-norm where `do_stable_layer_norm` says so. A family adds its Config and key map.
"""

# B batch, S samples, T frames, D width, C channels, K taps, G groups

import dataclasses
from typing import Literal, Self

import jax
import jax.numpy as jnp
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.core.errors import UserError
from tl_jax.nn.attention import SelfAttention
from tl_jax.nn.convolution import Conv
from tl_jax.nn.functions import activation, dropout, keys
from tl_jax.nn.linear import Linear
from tl_jax.nn.mlp import MLP
from tl_jax.nn.norm import LayerNorm
from tl_jax.nn.residual import drop_path
from tl_jax.nn.spans import spans


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes and rates, under their published names; `pooler` says whether a head's projector is built.

    Attributes:
      feat_extract_norm: `group` normalises the first convolution over time, `layer` every one over its channels.
      mask_time_prob, mask_feature_prob: share of frames and of channels that training hides in spans of
        `mask_*_length`, of which there are `mask_*_min_masks` at least; `apply_spec_augment` False hides none.
      layerdrop: how often training leaves out a block.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.1
    activation_dropout: float = 0.1
    attention_dropout: float = 0.1
    feat_proj_dropout: float = 0.0
    layerdrop: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    feat_extract_norm: Literal["group", "layer"] = "group"
    feat_extract_activation: str = "gelu"
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    do_stable_layer_norm: bool = False
    apply_spec_augment: bool = True
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0
    classifier_proj_size: int = 256
    pooler: bool = True

    def checked(self) -> Self:
        """Itself.

        Raises:
          UserError: an unknown activation, lists of the convolutions' sizes that differ in length.
        """
        activation(self.hidden_act), activation(self.feat_extract_activation)
        lists = (self.conv_dim, self.conv_stride, self.conv_kernel)
        if len(set(map(len, lists))) > 1 or not self.conv_dim:
            named = f"conv_dim, conv_stride and conv_kernel have {', '.join(str(len(one)) for one in lists)} entries"
            raise UserError("config.json", f"{named}, they must be of one length")
        return self

    def indices(self) -> list[dict[str, int]]:
        """Values of the placeholders in the key map: `i` counts blocks, `c` convolutions."""
        blocks, convs = self.num_hidden_layers, len(self.conv_dim)
        return [{"i": min(n, blocks - 1), "c": min(n, convs - 1)} for n in range(max(blocks, convs))]

    def without(self, pool: str) -> Self:
        """Without what a head with this pooling does not read."""
        return dataclasses.replace(self, pooler=pool == "pooler")

    def frames(self, samples):
        """How many frames so many samples give, at most 0 where they are too few; an int or an int array."""
        for size, stride in zip(self.conv_kernel, self.conv_stride):
            samples = (samples - size) // stride + 1
        return samples


class ConvNorm(nnx.Module):
    """Convolution over time, its norm if any, and the activation."""

    def __init__(self, config: Sizes, number: int, *, rngs: nnx.Rngs):
        inputs, outputs = (1, *config.conv_dim)[number], config.conv_dim[number]
        self.conv = Conv(
            inputs,
            outputs,
            (config.conv_kernel[number],),
            strides=(config.conv_stride[number],),
            padding="VALID",
            use_bias=config.conv_bias,
            kernel_init=nnx.initializers.variance_scaling(2.0, "fan_in", "normal"),
            rngs=rngs,
        )
        self.act = config.feat_extract_activation
        if config.feat_extract_norm == "layer":
            self.norm = LayerNorm(outputs, epsilon=1e-5, rngs=rngs)
        elif number == 0:
            # A group for every channel, so statistics over time alone; padding counts, as in the published network.
            self.norm = nnx.GroupNorm(outputs, num_groups=outputs, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        else:
            self.norm = None

    def __call__(self, x_BTC):
        """float[B, T, C] -> float[B, fewer T, outputs]."""
        y_BTC = self.conv(x_BTC)
        return activation(self.act)(y_BTC if self.norm is None else self.norm(y_BTC))


class Stem(nnx.Module):
    """From samples to frames of the network's width."""

    def __init__(self, config: Sizes, *, norm: bool = True, rngs: nnx.Rngs):
        channels, width = config.conv_dim[-1], config.hidden_size
        self.convs = nnx.List([ConvNorm(config, number, rngs=rngs) for number in range(len(config.conv_dim))])
        self.norm = LayerNorm(channels, epsilon=config.layer_norm_eps, rngs=rngs) if norm else None
        init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.projection = Linear(channels, width, kernel_init=init, rngs=rngs)
        if config.mask_time_prob > 0 or config.mask_feature_prob > 0:
            self.masked = nnx.Param(jax.random.uniform(rngs.params(), (width,)))
        self.config = config

    def __call__(self, x_BS, context: Context):
        """float[B, S] -> float[B, T, D] in the parameters' dtype."""
        # Samples are float32 whatever the network computes in, and the wider dtype would spread from here.
        x_BTC = x_BS[..., None].astype(self.projection.kernel.dtype)
        for conv in self.convs:
            x_BTC = conv(x_BTC)
        dropped, masked = keys(context.key, 2)
        x_BTD = self.projection(x_BTC if self.norm is None else self.norm(x_BTC))
        x_BTD = dropout(x_BTD, self.config.feat_proj_dropout, dropped)
        if masked is None or not self.config.apply_spec_augment:
            return x_BTD
        return self.hide(x_BTD, context.batch["attention_mask"].sum(axis=1), masked)

    def hide(self, x_BTD, lengths_B, key):
        """SpecAugment (Park et al. 2019): spans of frames become a learned vector, spans of channels zero."""
        in_time, in_width = keys(key, 2)
        cfg, (_, time, width) = self.config, x_BTD.shape
        if cfg.mask_time_prob > 0:
            sizes = (cfg.mask_time_prob, cfg.mask_time_length, cfg.mask_time_min_masks)
            hidden_BT = spans(lengths_B, time, *sizes, in_time)
            x_BTD = jnp.where(hidden_BT[..., None], self.masked[...], x_BTD)
        if cfg.mask_feature_prob > 0:
            sizes = (cfg.mask_feature_prob, cfg.mask_feature_length, cfg.mask_feature_min_masks)
            hidden_BD = spans(jnp.full_like(lengths_B, width), width, *sizes, in_width)
            x_BTD = jnp.where(hidden_BD[:, None, :], 0, x_BTD)
        return x_BTD


class Positions(nnx.Module):
    """A grouped convolution with weight norm (Salimans & Kingma 2016), added to frames whose padding it sees as zero.

    The kernel of each tap is scaled to the norm `gain`.
    """

    def __init__(self, config: Sizes, *, rngs: nnx.Rngs):
        width, taps, groups = config.hidden_size, config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
        kernel = jax.random.normal(rngs.params(), (taps, width // groups, width)) * 2 * (taps * width) ** -0.5
        self.kernel, self.bias = nnx.Param(kernel), nnx.Param(jnp.zeros(width))
        self.gain = nnx.Param(jnp.sqrt(jnp.sum(kernel**2, axis=(1, 2))))
        # In the pre-norm form this norm follows the last block.
        self.norm = None if config.do_stable_layer_norm else LayerNorm(width, epsilon=config.layer_norm_eps, rngs=rngs)
        self.groups, self.act, self.dropout = groups, config.feat_extract_activation, config.hidden_dropout

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> float[B, T, D]."""
        x_BTD = jnp.where(context.batch["attention_mask"][..., None].astype(bool), x_BTD, 0)
        kernel_KGD, taps = self.kernel[...], self.kernel.shape[0]
        norm_K11 = jnp.sqrt(jnp.sum(kernel_KGD.astype(jnp.float32) ** 2, axis=(1, 2), keepdims=True))
        kernel_KGD = (kernel_KGD * (self.gain[...][:, None, None] / norm_K11)).astype(x_BTD.dtype)
        y_BTD = jax.lax.conv_general_dilated(
            x_BTD,
            kernel_KGD,
            window_strides=(1,),
            padding=((taps // 2, (taps - 1) // 2),),
            dimension_numbers=("NTC", "TIO", "NTC"),
            feature_group_count=self.groups,
        )
        x_BTD = x_BTD + activation(self.act)(y_BTD + self.bias[...])
        return dropout(x_BTD if self.norm is None else self.norm(x_BTD), self.dropout, context.key)


class Block(nnx.Module):
    """Attention and MLP with residual sums, each followed by a norm, or behind one where `do_stable_layer_norm`.

    Args:
      attn: in place of the usual attention.
    """

    def __init__(self, config: Sizes, attn: nnx.Module | None = None, *, rngs: nnx.Rngs):
        init, width = nnx.initializers.normal(config.initializer_range), config.hidden_size
        if attn is None:
            heads, rate = config.num_attention_heads, config.attention_dropout
            attn = SelfAttention(width, heads, dropout=rate, kernel_init=init, rngs=rngs)
        self.attn = attn
        self.attn_norm = LayerNorm(width, epsilon=config.layer_norm_eps, rngs=rngs)
        self.mlp = MLP(width, config.intermediate_size, config.hidden_act, kernel_init=init, rngs=rngs)
        self.mlp_norm = LayerNorm(width, epsilon=config.layer_norm_eps, rngs=rngs)
        self.pre_norm, self.layerdrop = config.do_stable_layer_norm, config.layerdrop
        self.dropout, self.inner_dropout = config.hidden_dropout, config.activation_dropout
        self.drop_path = 0.0

    def attend(self, x_BTD, context: Context, key):
        """float[B, T, D] -> float[B, T, D]."""
        return self.attn(x_BTD, context.batch["attention_mask"], key)

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> float[B, T, D]."""
        in_attn, after_attn, in_mlp, after_mlp, whole, drop_attn, drop_mlp = keys(context.key, 7)

        def mlp(y_BTD):
            y_BTD = dropout(activation(self.mlp.act)(self.mlp.up(y_BTD)), self.inner_dropout, in_mlp)
            return drop_path(dropout(self.mlp.down(y_BTD), self.dropout, after_mlp), self.drop_path, drop_mlp)

        def attn(y_BTD):
            y_BTD = dropout(self.attend(y_BTD, context, in_attn), self.dropout, after_attn)
            return drop_path(y_BTD, self.drop_path, drop_attn)

        if self.pre_norm:
            y_BTD = x_BTD + attn(self.attn_norm(x_BTD))
            y_BTD = y_BTD + mlp(self.mlp_norm(y_BTD))
        else:
            y_BTD = self.attn_norm(x_BTD + attn(x_BTD))
            y_BTD = self.mlp_norm(y_BTD + mlp(y_BTD))
        if whole is None or self.layerdrop == 0.0:
            return y_BTD
        return jnp.where(jax.random.bernoulli(whole, self.layerdrop), x_BTD, y_BTD)


class Norm(LayerNorm):
    """The norm after the last block, as a stage."""

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> float[B, T, D]."""
        return super().__call__(x_BTD)


class Projector(nnx.Linear):
    """A stage: the mean over the frames that count, projected."""

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> `last_hidden_state` float[B, T, D] and `pooler_output` float[B, projected]."""
        # The published head projects frames and then takes their mean, which is the same.
        mask_BT = context.batch.get("attention_mask", jnp.ones(x_BTD.shape[:2]))
        mask_BT1 = mask_BT[..., None].astype(jnp.float32)
        mean_BD = jnp.sum(x_BTD.astype(jnp.float32) * mask_BT1, axis=1) / jnp.maximum(mask_BT1.sum(axis=1), 1.0)
        return {"last_hidden_state": x_BTD, "pooler_output": super().__call__(mean_BD.astype(x_BTD.dtype))}


class Encoder(chain.Backbone):
    """Stages `stem`, `positions`, `blocks/0` …, `norm` in the pre-norm form, and `pooler` where the config has one.

    Args:
      blocks: the blocks, in order.
      stem: in place of the usual one.
    """

    def __init__(self, config: Sizes, blocks: list[nnx.Module], stem: Stem | None = None, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.config = config
        self.stem = Stem(config, rngs=rngs) if stem is None else stem
        self.positions = Positions(config, rngs=rngs)
        self.blocks = nnx.List(blocks)
        names = ["stem", "positions", *(f"blocks/{i}" for i in range(len(blocks)))]
        if config.do_stable_layer_norm:
            self.norm = Norm(width, epsilon=config.layer_norm_eps, rngs=rngs)
            names.append("norm")
        if config.pooler:
            init = nnx.initializers.normal(config.initializer_range)
            self.pooler = Projector(width, config.classifier_proj_size, kernel_init=init, rngs=rngs)
            names.append("pooler")
        self.chains = nnx.static({"": tuple(names)})
        self.width = config.classifier_proj_size if config.pooler else width

    def begin(self, chain, batch, done) -> Carry:
        """`input_values` float[B, S]; `attention_mask` int[B, S] of samples (default: all ones) becomes one of frames.

        Raises:
          UserError: samples of more than one channel, or too few for a frame.
        """
        x_BS, mask_BS = batch["input_values"], batch.get("attention_mask")
        if x_BS.ndim != 2:
            raise UserError("batch", f"input_values are {list(x_BS.shape)}, this network takes [B, S]", "mix down")
        time = self.config.frames(x_BS.shape[1])
        if time < 1:
            raise UserError("batch", f"{x_BS.shape[1]} samples are too few for one frame", "pad them")
        lengths_B = jnp.full(x_BS.shape[0], x_BS.shape[1]) if mask_BS is None else mask_BS.sum(axis=1)
        mask_BT = jnp.arange(time) < self.config.frames(lengths_B)[:, None]
        return Carry(x_BS, {"attention_mask": mask_BT.astype(jnp.int32)}, {})
