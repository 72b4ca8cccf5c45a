"""What a model family says for itself, and the registry of families.

A `Family` as it stands is a plain Llama (arXiv 2302.13971). A subclass says what differs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args

from moecl_jax.errors import UserError
from moecl_jax.models.config import (
    MOST_LAYERS,
    MOST_NORM_EPSILON,
    AttentionKind,
    DecoderConfig,
)
from moecl_jax.outside import shortened
from moecl_jax.plugins import check_class
from moecl_jax.weights import TreePath
from moecl_jax.weights.families.rope import ROPE_TYPES, read_rope
from moecl_jax.weights.families.values import Values

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")

# The kinds of attention, as the key layer_types calls them.
FULL, SLIDING = LAYER_TYPES = ("full_attention", "sliding_attention")

Activation = Literal["silu", "gelu_tanh"]
QkNorm = Literal["none", "before_rotary", "after_rotary"]

_ACTIVATIONS: dict[Any, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}

# Keys of config.json that change what the model computes, with the one value that is implemented.
_ONLY_VALUE: dict[str, Any] = {
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
}

_BLOCK = "model.layers.{layer}."

# The tensor behind each parameter that a decoder can have, in the order of the fingerprint.
_TENSORS: dict[TreePath, str] = {
    ("embedder", "embedding"): "model.embed_tokens.weight",
    ("layers", "input_norm", "scale"): f"{_BLOCK}input_layernorm.weight",
    **{
        ("layers", "attention", name, "kernel"): f"{_BLOCK}self_attn.{name}.weight"
        for name in PROJECTIONS
    },
    ("layers", "post_attention_norm", "scale"): f"{_BLOCK}post_attention_layernorm.weight",
    **{
        ("layers", "feed_forward", name, "kernel"): f"{_BLOCK}mlp.{name}.weight"
        for name in ("gate_proj", "up_proj", "down_proj")
    },
    ("final_norm", "scale"): "model.norm.weight",
    ("lm_head", "kernel"): "lm_head.weight",
    **{
        ("layers", "attention", name, "bias"): f"{_BLOCK}self_attn.{name}.bias"
        for name in PROJECTIONS
    },
    ("layers", "attention", "q_norm", "scale"): f"{_BLOCK}self_attn.q_norm.weight",
    ("layers", "attention", "k_norm", "scale"): f"{_BLOCK}self_attn.k_norm.weight",
    ("layers", "attention_output_norm", "scale"): f"{_BLOCK}attention_output_layernorm.weight",
    ("layers", "feed_forward_output_norm", "scale"): (
        f"{_BLOCK}feed_forward_output_layernorm.weight"
    ),
}


class Family:
    """One architecture: what its config.json means, and what its tensors are called.

    A subclass needs a `model_type` and overrides what is not as in a plain Llama: the class
    attributes first, and the methods where the answer depends on config.json.

    Attributes:
      model_type: its name in the key `model_type` of config.json, and in messages.
      gguf_architecture: its name in the key `general.architecture` of GGUF files; None where those
        are not read. It is not inherited: another architecture may call things otherwise.
      gguf_interleaved: whether GGUF files hold the rows of queries and keys in pairs, (0, K/2),
        (1, K/2 + 1) and so on of each head of width K, as llama.cpp's own Llama wants them; false
        for what llama.cpp rotates as Hugging Face does (its rope type "neox").
      defaults: what config.json may leave out, with the values of the family's config class in
        transformers. Six keys have defaults without being named here: `num_key_value_heads`
        (`num_attention_heads`), `head_dim` (`hidden_size / num_attention_heads`), `rms_norm_eps`
        (1e-6), `max_position_embeddings` (2048), `tie_word_embeddings` and `attention_bias`
        (false).
      refused: other values of `model_type` that look like this family's, each with the reason why
        such models cannot be read; it goes on after "model_type is 'x', ".
      activation_key: the key of config.json that names the activation of the gate.
      biases: the attention projections, of `PROJECTIONS`, that always have a bias; None: all four
        where `attention_bias` is true in config.json, else none.
      qk_norm: whether queries and keys are normalised, and on which side of the rotary embedding.
      post_norms: whether the outputs of attention and feed-forward network are normalised too.
      norm_offset: what is added to the scales of norms in Hugging Face folders; 1 where the model
        multiplies by 1 + weight. GGUF files hold the sum.
      rope_types: the keys of `moecl_jax.weights.families.rope.ROPE_TYPES` that it knows.
      tensors: names of tensors that differ from Llama's, by the parameter's path in the tree of
        `moecl_jax.weights.load.Backbone`; "{layer}" stands for the layer's index.
    """

    model_type: ClassVar[str]
    gguf_architecture: ClassVar[str | None] = None
    gguf_interleaved: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {}
    refused: ClassVar[Mapping[str, str]] = {}
    activation_key: ClassVar[str] = "hidden_act"
    biases: ClassVar[tuple[str, ...] | None] = None
    qk_norm: ClassVar[QkNorm] = "none"
    post_norms: ClassVar[bool] = False
    norm_offset: ClassVar[float] = 0.0
    rope_types: ClassVar[tuple[str, ...]] = ("default", "linear", "llama3")
    tensors: ClassVar[Mapping[TreePath, str]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "gguf_architecture" not in vars(cls):
            cls.gguf_architecture = None

    def layer_types(self, values: Values) -> list[str]:
        """For each layer `FULL` or `SLIDING`, of which the latter sees a window alone.

        Args:
          values: config.json over the family's defaults.
        """
        return [FULL] * values.integer("num_hidden_layers")

    def attention_kinds(
        self, values: Values, window: int | None, head_width: int
    ) -> tuple[float, dict[str, AttentionKind]]:
        """Base of the rotary embedding, and how layers of each of `LAYER_TYPES` attend.

        Args:
          values: config.json over the family's defaults.
          window: positions that a `SLIDING` layer sees; None where no layer is one.
          head_width: size K of one head.
        """
        objects = {key: values.mapping(key) for key in ("rope_parameters", "rope_scaling")}
        theta, scaling = read_rope(
            values, "rope_theta", 10000.0, objects, types=self.rope_types, head_width=head_width
        )
        return theta, {
            FULL: AttentionKind(scaling=scaling),
            SLIDING: AttentionKind(window, scaling=scaling),
        }

    def embedding_scale(self, values: Values) -> float:
        """What token embeddings are multiplied by."""
        del values
        return 1.0

    def attention_scale(self, values: Values) -> float | None:
        """What attention scores are multiplied by; None for K ** -0.5 with heads of width K."""
        del values
        return None

    def from_gguf(self, values: dict[str, Any]) -> dict[str, Any]:
        """Completes what config.json would say by what llama.cpp takes for granted.

        Args:
          values: what the metadata of a GGUF file says, under the keys of config.json.
        """
        return values

    # The rest is the same in every family.

    def parse_config(self, raw: dict[str, Any], file: Path) -> DecoderConfig:
        """Turns the content of config.json into a DecoderConfig.

        Args:
          raw: the content of config.json, as transformers 4 or 5 write it.
          file: where it came from, for messages.

        Raises:
          UserError: a key is missing, malformed, or asks for something that is not implemented.
        """
        for key, only in _ONLY_VALUE.items():
            if raw.get(key, only) not in (only, None):
                raise UserError(
                    f"{file}: {key} is {shortened(raw[key])}, which is not supported yet; expected "
                    f"{only!r}. Use a model without it."
                )
        values = Values({**self.defaults, **raw}, file)
        if values.raw.get("num_hidden_layers") is not None:  # before anything has their length
            values.integer("num_hidden_layers", most=MOST_LAYERS)
        heads = values.integer("num_attention_heads")
        width = values.integer("hidden_size")
        try:
            head_width = values.integer("head_dim", width // heads)
            layer_types = self.layer_types(values)
            window = values.integer("sliding_window") if SLIDING in layer_types else None
            rope_theta, kinds = self.attention_kinds(values, window, head_width)
            used = [kind for kind in LAYER_TYPES if kind in layer_types]
            return DecoderConfig(
                vocabulary_size=values.integer("vocab_size"),
                width=width,
                ffn_width=values.integer("intermediate_size"),
                layers=len(layer_types),
                heads=heads,
                kv_heads=values.integer("num_key_value_heads", heads),
                head_width=head_width,
                rope_theta=rope_theta,
                norm_epsilon=values.number("rms_norm_eps", 1e-6, most=MOST_NORM_EPSILON),
                tied_embeddings=values.truth("tie_word_embeddings"),
                context_length=values.integer("max_position_embeddings", 2048),
                activation=self._activation(values),
                attention_bias=self._attention_bias(values),
                qk_norm=self.qk_norm,
                post_norms=self.post_norms,
                embedding_scale=self.embedding_scale(values),
                attention_scale=self.attention_scale(values),
                attention_kinds=tuple(kinds[kind] for kind in used),
                layer_kinds=tuple(map(used.index, layer_types)) if len(used) > 1 else (),
            )
        except (ValueError, ArithmeticError, TypeError) as error:
            raise UserError(f"{file}: {error}. Download the file again.") from error

    def tensor_names(self, config: DecoderConfig) -> dict[TreePath, str]:
        """Name of the tensor behind each parameter; "{layer}" stands for the layer's index.

        The order is part of a backbone's fingerprint.
        """
        unbiased = [name for name in PROJECTIONS if name not in config.attention_bias]
        absent: set[TreePath] = {("layers", "attention", name, "bias") for name in unbiased}
        if config.tied_embeddings:
            absent.add(("lm_head", "kernel"))
        if config.qk_norm == "none":
            absent |= {("layers", "attention", name, "scale") for name in ("q_norm", "k_norm")}
        if not config.post_norms:
            absent.add(("layers", "attention_output_norm", "scale"))
            absent.add(("layers", "feed_forward_output_norm", "scale"))
        everything = {**_TENSORS, **self.tensors}
        return {path: name for path, name in everything.items() if path not in absent}

    def _activation(self, values: Values) -> Activation:
        name = values.raw.get(self.activation_key, "silu")
        if not isinstance(name, str) or name not in _ACTIVATIONS:
            raise UserError(
                f"{values.file}: {self.activation_key} is {shortened(name)}, which is not "
                f"supported yet; expected {' or '.join(map(repr, _ACTIVATIONS))}. Use a model "
                "without it."
            )
        return _ACTIVATIONS[name]

    def _attention_bias(self, values: Values) -> tuple[str, ...]:
        if self.biases is not None:
            return self.biases
        return PROJECTIONS if values.truth("attention_bias") else ()


def listed_layer_types(values: Values) -> list[str] | None:
    """The key `layer_types` of config.json, one of `LAYER_TYPES` a layer; None where it is absent.

    Raises:
      UserError: it has another length than the layers, or another entry.
    """
    layers = values.integer("num_hidden_layers")
    listed = values.raw.get("layer_types")
    if listed is None:
        return None
    wrong = not isinstance(listed, list) or len(listed) != layers
    if wrong or any(entry not in LAYER_TYPES for entry in listed):
        raise UserError(
            f"{values.file}: layer_types is {shortened(listed)}; expected {layers} entries, each "
            f"{FULL!r} or {SLIDING!r}."
        )
    checked: list[str] = listed
    return checked


# The families that are found by the `model_type` of a config.json.
FAMILIES: dict[str, type[Family]] = {}

AnyFamily = TypeVar("AnyFamily", bound=type[Family])


def register(family: AnyFamily) -> AnyFamily:
    """Makes a family known by its `model_type`; a decorator of the class.

    A class that is defined again, as in a notebook, takes the place of its former self.

    Raises:
      UserError: the class lacks a part, or another family has the name already.
    """
    check_family(family, "model family")
    for name, other in FAMILIES.items():
        if (other.__module__, other.__qualname__) == (family.__module__, family.__qualname__):
            continue
        names = {"model_type": name, "gguf_architecture": other.gguf_architecture}
        for attribute, taken in names.items():
            if taken is not None and getattr(family, attribute) == taken:
                raise UserError(
                    f"model family: {family.__qualname__} and {other.__qualname__} both have the "
                    f"{attribute} {taken!r}. Give one of them another, or leave out @register and "
                    "name the class where the model is loaded."
                )
    FAMILIES[family.model_type] = family
    return family


def check_family(value: Any, what: str) -> type[Family]:
    """Checks that a class says all that a family has to, and returns it.

    Args:
      value: the class.
      what: how it was named, for messages.

    Raises:
      UserError: it is no `Family`, lacks a part, or a part is not one of its choices.
    """
    family: type[Family] = check_class(value, Family, what)
    where = f"{what}: {family.__qualname__}"
    if not isinstance(family.model_type, str) or not family.model_type:
        raise UserError(f"{where}.model_type is {family.model_type!r}; expected a name.")
    if family.qk_norm not in get_args(QkNorm):
        raise UserError(
            f"{where}.qk_norm is {family.qk_norm!r}; expected one of "
            f"{', '.join(map(repr, get_args(QkNorm)))}."
        )
    choices = {"tensors": _TENSORS, "biases": PROJECTIONS, "rope_types": ROPE_TYPES}
    for attribute, known in choices.items():
        unknown = [entry for entry in getattr(family, attribute) or () if entry not in known]
        if unknown:
            raise UserError(
                f"{where}.{attribute} has {unknown[0]!r}, which is not known; "
                f"expected some of {', '.join(map(str, known))}."
            )
    return family
