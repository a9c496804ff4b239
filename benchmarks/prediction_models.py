"""The models of the measured runs, by the names in the data: networks of our own, and language models of `transformers`.

The runs used transformers 4.51. What has changed since and matters for memory is put back: a cache holds the keys and values
themselves (newer releases copy them into it), attention copies its inputs, but for OPT's, and repeats the heads of keys (newer
releases leave grouped heads to torch, which keeps the square matrix for them), and T5 keeps that matrix.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.prediction_cnns import CNNS

_GPT2 = "GPT2Config", "GPT2LMHeadModel"
_OPT = "OPTConfig", "OPTForCausalLM"
_T5 = "T5Config", "T5ForConditionalGeneration"
_EAGER = {"attn_implementation": "eager"}
# The names under which transformers knows `_attention`: with copies of its inputs, and without.
_COPYING, _VIEWING = "prediction-copying", "prediction-viewing"
# What differs from the defaults of the library's configuration classes.
_TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "EleutherAI/gpt-neo-125M": (
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {
            "hidden_size": 768,
            "num_layers": 12,
            "num_heads": 12,
            "attention_types": [[["global", "local"], 6]],
            **_EAGER,
        },
    ),
    "facebook/opt-125m": (*_OPT, {"attn_implementation": _VIEWING}),
    "facebook/opt-350m": (
        *_OPT,
        {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "ffn_dim": 4096,
            "word_embed_proj_dim": 512,
            "do_layer_norm_before": False,
            "attn_implementation": _VIEWING,
        },
    ),
    "openai-community/gpt2": (*_GPT2, {}),
    "distilbert/distilgpt2": (*_GPT2, {"n_layer": 6}),
    "cerebras/Cerebras-GPT-111M": (
        *_GPT2,
        {
            "n_layer": 10,
            "n_inner": 3072,
            "n_positions": 2048,
            "activation_function": "gelu",
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
        },
    ),
    "T5-small": (*_T5, {"decoder_start_token_id": 0, **_EAGER}),
    "t5-base": (
        *_T5,
        {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "decoder_start_token_id": 0, **_EAGER},
    ),
    "Qwen/Qwen3-4B": (
        "Qwen3Config",
        "Qwen3ForCausalLM",
        {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
            "tie_word_embeddings": True,
        },
    ),
    "meta-llama/Llama-3.2-3B-Instruct": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 128_256,
            "tie_word_embeddings": True,
        },
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "vocab_size": 151_936,
            "tie_word_embeddings": False,
        },
    ),
    "google/gemma-2-2b-it": ("Gemma2Config", "Gemma2ForCausalLM", _EAGER),
}


def build(name: str) -> nn.Module:
    """The model of that name in training mode, in float32 and on the current default device; KeyError for no such name."""
    return (CNNS[name]() if name in CNNS else _language_model(name)).train()


def is_cnn(name: str) -> bool:
    """Whether that model takes images, else tokens."""
    return name in CNNS


def vocabulary(name: str) -> int:
    """How many tokens that language model knows."""
    size: int = _config(name).vocab_size
    return size


def cache_of(name: str) -> Any:
    """A new cache of keys and values, as each forward of that language model made one."""
    from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache

    kept = type("Kept", (DynamicLayer,), {"update": _keep})

    def cache() -> Any:
        return Cache(layer_class_to_replicate=kept)

    return EncoderDecoderCache(cache(), cache()) if _TRANSFORMERS[name][:2] == _T5 else cache()


def _keep(layer: Any, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    layer.keys, layer.values, layer.is_initialized = key_states, value_states, True
    return key_states, value_states


def _language_model(name: str) -> nn.Module:
    import transformers
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    for way in (_COPYING, _VIEWING):
        transformers.AttentionInterface.register(way, partial(_attention, copies=way == _COPYING))
        AttentionMaskInterface.register(way, lambda *args, **kwargs: _as_numbers(sdpa_mask(*args, **kwargs)))
    model: nn.Module = getattr(transformers, _TRANSFORMERS[name][1])(_config(name))
    return model.float()


def _config(name: str) -> Any:
    import transformers

    config, _, settings = _TRANSFORMERS[name]
    return getattr(transformers, config)(**{"attn_implementation": _COPYING, **settings})


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    *,
    copies: bool,
    **_: Any,
) -> tuple[Tensor, None]:
    """Scaled dot product attention as transformers 4.51 called it."""
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = _repeated(key, groups), _repeated(value, groups)
    if copies:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    causal = attention_mask is None and query.shape[2] > 1 and (True if is_causal is None else is_causal)
    result = scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, is_causal=causal
    )
    return result.transpose(1, 2).contiguous(), None


def _repeated(heads: Tensor, times: int) -> Tensor:
    if times == 1:
        return heads
    batch, count, length, size = heads.shape
    return heads[:, :, None].expand(batch, count, times, length, size).reshape(batch, count * times, length, size)


def _as_numbers(mask: Tensor | None) -> Tensor | None:
    """The one mask of all layers, of numbers to be added; None stays None."""
    if mask is None:
        return None
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill_(mask.logical_not(), torch.finfo(torch.float32).min)
