"""Tiny, unedited transformers models by architecture name: what the tests capture, place and run.

6 heads (3 key-value heads where there are groups), hidden 48, ffn 96, 6 experts, vocab 120: TP 2
and 3 divide all of them, TP 4 none. `ZOO[name]()` builds one; every weight is seeded, none is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

HIDDEN, HEADS, KV_HEADS, FFN, LAYERS, VOCAB, EXPERTS = 48, 6, 3, 96, 2, 120, 6

_BASE = dict(
    hidden_size=HIDDEN,
    num_attention_heads=HEADS,
    num_hidden_layers=LAYERS,
    vocab_size=VOCAB,
    intermediate_size=FFN,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
_GROUPED = _BASE | dict(num_key_value_heads=KV_HEADS)
_MIXTURE = _GROUPED | dict(num_experts_per_tok=2, moe_intermediate_size=32)
_GPT = dict(
    n_embd=HIDDEN,
    n_head=HEADS,
    n_layer=LAYERS,
    n_inner=FFN,
    n_positions=64,
    vocab_size=VOCAB,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
_DEEPSEEK = _MIXTURE | dict(
    num_key_value_heads=HEADS,
    n_routed_experts=EXPERTS,
    n_group=2,
    topk_group=1,
    q_lora_rank=24,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=8,
    first_k_dense_replace=1,
    n_shared_experts=1,
)

CAUSAL_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _GROUPED),
    "llama_tied": ("Llama", _GROUPED | dict(tie_word_embeddings=True, attention_bias=True)),
    "mistral": ("Mistral", _GROUPED | dict(sliding_window=5)),
    "qwen2": ("Qwen2", _GROUPED),
    "qwen3": ("Qwen3", _GROUPED | dict(head_dim=8)),
    "phi3": ("Phi3", _GROUPED),
    "phi": ("Phi", _BASE),
    "gpt2": ("GPT2", _GPT),
    "gpt_neox": ("GPTNeoX", _BASE),
    "gpt_neo": (
        "GPTNeo",
        dict(
            hidden_size=HIDDEN,
            num_layers=LAYERS,
            num_heads=HEADS,
            intermediate_size=FFN,
            attention_types=[[["global", "local"], 1]],
            window_size=5,
            vocab_size=VOCAB,
            max_position_embeddings=64,
            bos_token_id=1,
            eos_token_id=2,
        ),
    ),
    "gptj": ("GPTJ", _GPT | dict(rotary_dim=4)),
    "gpt_bigcode": ("GPTBigCode", _GPT),
    "opt": ("OPT", _BASE | dict(ffn_dim=FFN, word_embed_proj_dim=HIDDEN)),
    "bloom": ("Bloom", dict(hidden_size=HIDDEN, n_head=HEADS, n_layer=LAYERS, vocab_size=VOCAB)),
    "falcon": (
        "Falcon",
        dict(
            hidden_size=HIDDEN,
            num_attention_heads=HEADS,
            num_hidden_layers=LAYERS,
            vocab_size=VOCAB,
            num_kv_heads=KV_HEADS,
            new_decoder_architecture=True,
            bos_token_id=1,
            eos_token_id=2,
        ),
    ),
    "falcon_mqa": (
        "Falcon",
        dict(
            hidden_size=HIDDEN,
            num_attention_heads=HEADS,
            num_hidden_layers=LAYERS,
            vocab_size=VOCAB,
            multi_query=True,
            new_decoder_architecture=False,
            bos_token_id=1,
            eos_token_id=2,
        ),
    ),
    "falcon_alibi": (
        "Falcon",
        dict(
            hidden_size=HIDDEN,
            num_attention_heads=HEADS,
            num_hidden_layers=LAYERS,
            vocab_size=VOCAB,
            alibi=True,
            multi_query=False,
            new_decoder_architecture=False,
            bos_token_id=1,
            eos_token_id=2,
        ),
    ),
    "mpt": (
        "Mpt",
        dict(
            d_model=HIDDEN,
            n_heads=HEADS,
            n_layers=LAYERS,
            vocab_size=VOCAB,
            max_seq_len=64,
            expansion_ratio=2,
        ),
    ),
    "codegen": ("CodeGen", _GPT | dict(n_head=4, rotary_dim=4)),
    "olmo": ("Olmo", _GROUPED | dict(clip_qkv=1.0)),
    "olmo2": ("Olmo2", _GROUPED),
    "starcoder2": ("Starcoder2", _GROUPED),
    "granite": ("Granite", _GROUPED | dict(logits_scaling=2.0, residual_multiplier=0.5)),
    "cohere": ("Cohere", _GROUPED | dict(logit_scale=0.5)),
    "cohere2": ("Cohere2", _GROUPED | dict(sliding_window=5)),
    "gemma": ("Gemma", _GROUPED | dict(head_dim=8)),
    "gemma2": ("Gemma2", _GROUPED | dict(head_dim=8, sliding_window=5)),
    "gemma3": ("Gemma3", _GROUPED | dict(head_dim=8, sliding_window=5)),
    "glm": ("Glm", _GROUPED | dict(head_dim=8)),
    "glm4": ("Glm4", _GROUPED | dict(head_dim=8)),
    "stablelm": ("StableLm", _GROUPED),
    "smollm3": ("SmolLM3", _GROUPED),
    "persimmon": ("Persimmon", _BASE),
    "nemotron": ("Nemotron", _GROUPED | dict(head_dim=8)),
    "exaone4": ("Exaone4", _GROUPED | dict(sliding_window=5)),
    "helium": ("Helium", _GROUPED | dict(head_dim=8)),
    "biogpt": ("BioGpt", _BASE),
    "xglm": (
        "XGLM",
        dict(
            d_model=HIDDEN,
            attention_heads=HEADS,
            num_layers=LAYERS,
            ffn_dim=FFN,
            vocab_size=VOCAB,
            max_position_embeddings=64,
        ),
    ),
    "mixtral": ("Mixtral", _MIXTURE | dict(num_local_experts=EXPERTS)),
    "qwen2_moe": (
        "Qwen2Moe",
        _MIXTURE
        | dict(num_experts=EXPERTS, shared_expert_intermediate_size=32, decoder_sparse_step=1),
    ),
    "qwen3_moe": ("Qwen3Moe", _MIXTURE | dict(num_experts=EXPERTS, head_dim=8)),
    "olmoe": ("Olmoe", _MIXTURE | dict(num_experts=EXPERTS)),
    "phimoe": ("Phimoe", _MIXTURE | dict(num_local_experts=EXPERTS)),
    "granitemoe": ("GraniteMoe", _MIXTURE | dict(num_local_experts=EXPERTS)),
    "gpt_oss": (
        "GptOss",
        _MIXTURE
        | dict(num_local_experts=EXPERTS, head_dim=8, sliding_window=5, intermediate_size=32),
    ),
    "deepseek_v2": ("DeepseekV2", _DEEPSEEK | dict(topk_method="greedy", num_experts_per_tok=2)),
    "deepseek_v3": ("DeepseekV3", _DEEPSEEK),
    "dbrx": (
        "Dbrx",
        dict(
            d_model=HIDDEN,
            n_heads=HEADS,
            n_layers=LAYERS,
            vocab_size=VOCAB,
            max_seq_len=64,
            attn_config=dict(kv_n_heads=KV_HEADS, rope_theta=10000.0, clip_qkv=8.0),
            ffn_config=dict(
                ffn_hidden_size=32, moe_num_experts=EXPERTS, moe_top_k=2, hidden_size=HIDDEN
            ),
        ),
    ),
    "ernie4_5_moe": ("Ernie4_5_Moe", _MIXTURE | dict(moe_num_experts=EXPERTS, moe_k=2)),
    "glm4_moe": (
        "Glm4Moe",
        _MIXTURE
        | dict(
            n_routed_experts=EXPERTS, n_group=1, topk_group=1, first_k_dense_replace=1, head_dim=8
        ),
    ),
}

_ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("Bert", "Model", _BASE),
    "roberta": ("Roberta", "Model", _BASE),
    "distilbert": (
        "DistilBert",
        "Model",
        dict(
            dim=HIDDEN,
            n_heads=HEADS,
            n_layers=LAYERS,
            hidden_dim=FFN,
            vocab_size=VOCAB,
            max_position_embeddings=64,
        ),
    ),
    "electra": ("Electra", "Model", _BASE | dict(embedding_size=24)),
    "mpnet": ("MPNet", "Model", _BASE),
    "albert": ("Albert", "Model", _BASE | dict(embedding_size=24)),
    "modernbert": (
        "ModernBert",
        "Model",
        _BASE
        | dict(
            local_attention=8,
            global_attn_every_n_layers=2,
            cls_token_id=1,
            sep_token_id=2,
        ),
    ),
    "t5": (
        "T5",
        "EncoderModel",
        dict(
            d_model=HIDDEN,
            d_kv=8,
            d_ff=FFN,
            num_layers=LAYERS,
            num_heads=HEADS,
            vocab_size=VOCAB,
            feed_forward_proj="gated-gelu",
        ),
    ),
    "vit": ("ViT", "Model", _BASE | dict(image_size=16, patch_size=4)),
}


def build_causal(family: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
    """Return a factory of a causal language model of a family, with its config's options."""

    def build() -> nn.Module:
        kind = "ForCausalLM"
        config_name = family
        if family in ("GPT2",):
            kind = "LMHeadModel"
        if family == "Gemma3":
            config_name = "Gemma3Text"
        return _build(f"{config_name}Config", f"{family}{kind}", options)

    return build


def _encoder(family: str, kind: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
    return lambda: _build(f"{family}Config", f"{family}{kind}", options)


def _build(config_class: str, model_class: str, options: dict[str, Any]) -> nn.Module:
    import transformers

    config = getattr(transformers, config_class)(**options)
    model = getattr(transformers, model_class)(config)
    return randomise(model)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill parameters with seeded noise around their initial value: none hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            start = 1.0 if parameter.dim() == 1 and bool((parameter == 1).all()) else 0.0
            parameter.copy_(start + noise * (0.1 if parameter.dim() == 1 else 0.15))
    return model.eval()


CAUSAL: dict[str, Callable[[], nn.Module]] = {
    name: build_causal(family, options) for name, (family, options) in CAUSAL_CONFIGS.items()
}
ENCODERS: dict[str, Callable[[], nn.Module]] = {
    name: _encoder(family, kind, options) for name, (family, kind, options) in _ENCODERS.items()
}
ZOO = CAUSAL | ENCODERS
