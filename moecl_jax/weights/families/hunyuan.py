"""HunYuan (Tencent's Hunyuan-7B and its sizes), the dense models."""

from moecl_jax.weights.families.base import Family, register


@register
class HunYuan(Family):
    """Queries and keys are normalised after the rotary embedding, whose base alpha stretches."""

    model_type = "hunyuan_v1_dense"
    defaults = {"rms_norm_eps": 1e-5}
    qk_norm = "after_rotary"
    rope_types = (*Family.rope_types, "dynamic")
    tensors = {
        ("layers", "attention", "q_norm", "scale"): (
            "model.layers.{layer}.self_attn.query_layernorm.weight"
        ),
        ("layers", "attention", "k_norm", "scale"): (
            "model.layers.{layer}.self_attn.key_layernorm.weight"
        ),
    }
