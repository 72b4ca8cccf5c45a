"""The original's format: names and shapes of its tensors, its settings, and our trees of both.

A checkpoint is PREFIX.bin or PREFIX.safetensors, tensors by name, and PREFIX.json, its settings.

Axes: L layers, D width of the model, I and O input and output widths of a projection, r rank,
T tasks, C classes of a task. Expert 0 is the shared one, expert e that of task e in order.

    one a layer, named seq_module_.layer{l}.wrapper_module_. +           our leaf
      mlp_.mlp_.w{1,2,3}_.loras_.expert{e}.lora_a_.weight       [r, I]   a [L, I, r]
      mlp_.mlp_.w{1,2,3}_.loras_.expert{e}.lora_b_.weight       [O, r]   b [L, r, O]
      self_attn_.w{q,k,v,o}_.loras_.expert0.lora_{a,b}_.weight  alike    shared expert's a, b
      mlp_.moes_.gate_.weight                                   [2, D]   gate [L, 2, D]
      mlp_.moes_.task_classifier_.weight                        [T, D]   discriminator [L, T, D]
    named seq_module_.output.wrapper_module_.layers_. +
      {task}_score_.weight, or score_.weight for all tasks      [C, D]   head [D, C]

where w1 is the gate projection, w2 the down and w3 the up projection.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from moecl_jax.errors import UserError
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.lora import ATTENTION_TARGETS, FFN_TARGETS, TARGETS, projection_sizes
from moecl_jax.outside import shortened
from moecl_jax.weights import TreePath
from moecl_jax.weights.files import read_object

Tensors = dict[str, np.ndarray]

MTL5_ORDER = ("agnews", "amazon", "dbpedia", "yahoo")
"""The tasks of the original's code that have a head each, in the order of their experts."""

_LAYER = "seq_module_.layer{layer}.wrapper_module_."
_OUTPUT = "seq_module_.output.wrapper_module_.layers_."
_GATE = _LAYER + "mlp_.moes_.gate_.weight"
_DISCRIMINATOR = _LAYER + "mlp_.moes_.task_classifier_.weight"
_HEAD = re.compile(re.escape(_OUTPUT) + r"(?:(?P<task>.{1,100})_)?score_\.weight")
_LAYER_INDEX = re.compile(r"seq_module_\.layer([0-9]{1,6})\.")

_PROJECTIONS = {
    "gate_proj": "mlp_.mlp_.w1_",
    "up_proj": "mlp_.mlp_.w3_",
    "down_proj": "mlp_.mlp_.w2_",
    **{f"{letter}_proj": f"self_attn_.w{letter}_" for letter in "qkvo"},
}
_SETTINGS_NAMES = {
    "w1_proj": "gate_proj",
    "w2_proj": "down_proj",
    "w3_proj": "up_proj",
    **{name: name for name in ATTENTION_TARGETS},
}
_HUGE = 1e9  # no setting reaches it

# Settings that would change what the tensors compute, with the one value that is implemented.
_ONLY_VALUE: dict[str, Any] = {"bias": "none", "use_dora": False, "use_rslora": False}


@dataclasses.dataclass(frozen=True)
class AdapterSettings:
    """What PREFIX.json says.

    Attributes:
      rank: rank r of the experts.
      lora_alpha: numerator of the experts' scale lora_alpha / r.
      dropout: dropout rate on the inputs of A in training.
      targets: adapted projections, out of `lora.TARGETS`.
      task_count: T, the number of experts less the shared one.
      content: everything in the file.
    """

    rank: int
    lora_alpha: float
    dropout: float
    targets: tuple[str, ...]
    task_count: int
    content: Mapping[str, Any]


def read_settings(file: Path) -> AdapterSettings:
    """Reads PREFIX.json.

    Raises:
      UserError: it is missing, broken, or asks for something that is not implemented.
    """
    content = read_object(
        file,
        "A checkpoint of the original is PREFIX.bin with PREFIX.json beside it; name both by "
        "--adapter=PREFIX.",
        nan_as_null=True,  # the original's code writes them for what it has not measured
    )
    for key, only in _ONLY_VALUE.items():
        if content.get(key, only) not in (only, None):
            raise UserError(
                f"{file}: {key} is {shortened(content[key])}, which is not supported; expected "
                f"{only!r}."
            )
    dropout = _number(content, "lora_dropout", file)
    if not 0 <= dropout < 1:
        raise UserError(f"{file}: lora_dropout is {dropout}; expected at least 0 and below 1.")
    return AdapterSettings(
        rank=_integer(content, "r", file, lowest=1),
        lora_alpha=_number(content, "lora_alpha", file),
        dropout=dropout,
        targets=_targets(content, file),
        task_count=_integer(content, "num_experts", file, lowest=2) - 1,
        content=content,
    )


def settings_content(settings: AdapterSettings, base: str) -> dict[str, Any]:
    """The content of PREFIX.json: what was read once, and what may have changed since.

    Args:
      settings: settings of the run; their content is that of the checkpoint that was converted,
        or empty if there was none.
      base: name of the base model, where there is no such content.
    """
    known = {ours: theirs for theirs, ours in _SETTINGS_NAMES.items()}
    whole = float(settings.lora_alpha).is_integer()
    content = settings.content or {
        "bias": "none",
        "peft_type": "MIXLORA",
        "r": settings.rank,
        "lora_alpha": int(settings.lora_alpha) if whole else settings.lora_alpha,
        "target_modules": sorted(known[name] for name in settings.targets),
        "base_model_name_or_path": base,
    }
    changing = {"lora_dropout": settings.dropout, "num_experts": settings.task_count + 1}
    return {**content, **changing}


def tensor_names(
    targets: Sequence[str], tasks: Sequence[str], *, shared_head: bool
) -> dict[TreePath, str]:
    """The name of the tensor behind each leaf of our trees; "{layer}" stands for the layer.

    Args:
      targets: adapted projections.
      tasks: names of the tasks in the order of their experts.
      shared_head: whether there is one head for all tasks, not one a task.

    Returns:
      Names by path: `shared expert PROJECTION a`, `shared gate`, `shared discriminator`,
      `experts TASK PROJECTION a`, and `heads TASK` or `head`.
    """
    names: dict[TreePath, str] = {}
    for target in (target for target in TARGETS if target in targets):
        owners: list[TreePath] = [("shared", "expert")]
        if target in FFN_TARGETS:  # the LoRA on attention is one for all tasks
            owners += [("experts", task) for task in tasks]
        for expert, owner in enumerate(owners):
            lora = f"{_LAYER}{_PROJECTIONS[target]}.loras_.expert{expert}.lora_"
            for factor in "ab":
                names[(*owner, target, factor)] = f"{lora}{factor}_.weight"
    names["shared", "discriminator"] = _DISCRIMINATOR
    names["shared", "gate"] = _GATE
    if shared_head:
        names["head",] = f"{_OUTPUT}score_.weight"
    else:
        names |= {("heads", task): f"{_OUTPUT}{task}_score_.weight" for task in tasks}
    return names


def head_classes(tensors: Tensors, file: Path) -> dict[str | None, int]:
    """Number of classes of each head, by task; under None that of the head of all tasks.

    Raises:
      UserError: there is no head, or there are heads of both kinds.
    """
    found = {match["task"]: name for name in tensors if (match := _HEAD.fullmatch(name))}
    if not found:
        raise UserError(
            f"{file}: tensor '{_OUTPUT}score_.weight' is missing, and so is every "
            f"'{_OUTPUT}TASK_score_.weight'; expected one head for all tasks or one a task."
        )
    if None in found and len(found) > 1:
        raise UserError(
            f"{file}: holds '{found.pop(None)}', one head for all tasks, and also "
            f"'{next(iter(found.values()))}', a task's own. Expected heads of one kind."
        )
    for name in found.values():
        if tensors[name].ndim != 2:
            shape = list(tensors[name].shape)
            raise UserError(
                f"{file}: tensor '{name}' has shape {shape}; expected [classes, width]."
            )
        if tensors[name].shape[0] < 2:
            raise UserError(
                f"{file}: tensor '{name}' is the head of {tensors[name].shape[0]} classes; "
                "expected at least two."
            )
    return {task: tensors[name].shape[0] for task, name in found.items()}


def expert_order(tasks: Sequence[str]) -> list[str]:
    """Tasks with a head each, in the order of their experts: MTL5's, or the given one."""
    if set(tasks) <= set(MTL5_ORDER):
        return [task for task in MTL5_ORDER if task in tasks]
    return list(tasks)


def check_tensors(
    tensors: Tensors,
    names: Mapping[TreePath, str],
    config: DecoderConfig,
    settings: AdapterSettings,
    *,
    file: Path,
    base: str,
) -> None:
    """Refuses a checkpoint that is not exactly what its settings and its base ask for.

    Args:
      tensors: tensors of the file by name; heads are two-dimensional.
      names: names of the tensors that it should hold, by path.
      config: sizes of the base model.
      settings: what PREFIX.json says.
      file: the file's name for messages.
      base: the base model's name for messages.

    Raises:
      UserError: names a tensor that is missing, surplus or misshapen, and whether the adapter was
        made for another base.
    """
    expected = _expected_shapes(tensors, names, config, settings)
    why = f"from {base} and r = {settings.rank} with num_experts = {settings.task_count + 1}"
    missing = [name for name in expected if name not in tensors]
    misshapen = [n for n in expected if n in tensors and tensors[n].shape != expected[n]]
    surplus = [name for name in tensors if name not in expected]
    if missing:
        shape = list(expected[missing[0]])
        problem = f"{_some(missing)} missing; expected it with shape {shape} {why}"
    elif misshapen:
        name = misshapen[0]
        problem = (
            f"{_some(misshapen)} misshapen: it has shape {shortened(list(tensors[name].shape))}, "
            f"expected {list(expected[name])} {why}"
        )
    elif surplus:
        problem = f"{_some(surplus)} unexpected {why} and target_modules {list(settings.targets)}"
    else:
        return
    theirs, ours = _sizes(tensors), (config.layers, config.width, config.ffn_width)
    if any(found not in (None, size) for found, size in zip(theirs, ours, strict=True)):
        described = ", ".join(
            f"{what} {found if found is not None else '?'} (here {size})"
            for what, found, size in zip(("layers", "width", "FFN"), theirs, ours, strict=True)
        )
        raise UserError(
            f"{file}: this adapter belongs to another base than {base}: {described}. Name the "
            f"model that it was trained on as --base. ({problem}.)"
        )
    raise UserError(f"{file}: {problem}. Copy {file.name} and its .json again, from one training.")


def to_trees(tensors: Tensors, names: Mapping[TreePath, str], layers: int, file: Path) -> Any:
    """Our trees, in float32, of checked tensors.

    Raises:
      UserError: a number is not finite.
    """
    leaves = {}
    for path, name in names.items():
        parts = []
        for one in _each_layer(name, layers):
            with np.errstate(invalid="ignore"):  # refused below
                part = tensors[one].astype(np.float32)
            if not np.isfinite(part).all():
                raise UserError(f"{file}: tensor '{one}' holds numbers that are not finite.")
            parts.append(part.T if _transposed(path) else part)
        leaves[path] = np.stack(parts) if "{layer}" in name else parts[0]
    return traverse_util.unflatten_dict(leaves)


def to_tensors(trees: Any, names: Mapping[TreePath, str], layers: int) -> Tensors:
    """The inverse of `to_trees`, in float32; layer by layer."""
    leaves = traverse_util.flatten_dict(trees)
    tensors = {}
    for layer in range(layers):
        for path, name in names.items():
            if "{layer}" in name:
                tensors[name.format(layer=layer)] = _stored(leaves[path][layer], path)
    return tensors | {
        name: _stored(leaves[path], path) for path, name in names.items() if "{layer}" not in name
    }


def _targets(content: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    """`target_modules`, a list of names or a truth value by name."""
    given = content.get("target_modules")
    if isinstance(given, dict) and all(isinstance(value, bool) for value in given.values()):
        given = [name for name, chosen in given.items() if chosen]
    if not isinstance(given, list) or not given or not all(isinstance(g, str) for g in given):
        raise UserError(
            f"{file}: target_modules is {shortened(content.get('target_modules'))}; expected a "
            f"list of projections ({', '.join(_SETTINGS_NAMES)}) or an object of true and false by "
            "them."
        )
    for name in given:
        if name not in _SETTINGS_NAMES:
            raise UserError(
                f"{file}: target_modules names {shortened(name)}; expected "
                f"{', '.join(_SETTINGS_NAMES)}."
            )
    chosen = {_SETTINGS_NAMES[name] for name in given}
    return tuple(target for target in TARGETS if target in chosen)


def _integer(content: Mapping[str, Any], key: str, file: Path, lowest: int) -> int:
    value = content.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise UserError(
            f"{file}: {key} is {shortened(value)}; expected an integer of at least {lowest}."
            if key in content
            else f"{file}: {key} is missing; expected an integer of at least {lowest}."
        )
    return value


def _number(content: Mapping[str, Any], key: str, file: Path) -> float:
    value = content.get(key)
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else -1
    if not 0 <= number < _HUGE:
        found = shortened(value) if key in content else "missing"
        raise UserError(f"{file}: {key} is {found}; expected a number of at least 0.")
    return float(number)


def _transposed(path: TreePath) -> bool:
    return path[0] in ("head", "heads") or path[-1] in ("a", "b")


def _stored(leaf: np.ndarray, path: TreePath) -> np.ndarray:
    array = np.asarray(leaf, np.float32)
    return np.ascontiguousarray(array.T if _transposed(path) else array)


def _each_layer(name: str, layers: int) -> Iterator[str]:
    if "{layer}" not in name:
        yield name
        return
    for layer in range(layers):
        yield name.format(layer=layer)


def _expected_shapes(
    tensors: Tensors,
    names: Mapping[TreePath, str],
    config: DecoderConfig,
    settings: AdapterSettings,
) -> dict[str, tuple[int, ...]]:
    """Shapes by name; of heads, which may have any number of classes, the width is checked."""
    sizes = projection_sizes(config)
    shapes: dict[str, tuple[int, ...]] = {}
    for path, name in names.items():
        shape: tuple[int, ...]
        if path == ("shared", "gate"):
            shape = (2, config.width)
        elif path == ("shared", "discriminator"):
            shape = (settings.task_count, config.width)
        elif path[0] in ("head", "heads"):
            shape = (len(tensors[name]) if name in tensors else 2, config.width)
        else:
            inputs, outputs = sizes[path[-2]]
            shape = (settings.rank, inputs) if path[-1] == "a" else (outputs, settings.rank)
        shapes.update(dict.fromkeys(_each_layer(name, config.layers), shape))
    return shapes


def _sizes(tensors: Tensors) -> tuple[int | None, int | None, int | None]:
    """Layers, width and FFN width of the base an adapter was made for, as most tensors say."""
    layers = [int(match[1]) for name in tensors if (match := _LAYER_INDEX.match(name))]
    gate, up = _GATE.partition("{layer}")[2], f"{_PROJECTIONS['up_proj']}."
    matrices = {name: tensor for name, tensor in tensors.items() if tensor.ndim == 2}
    width = Counter(t.shape[-1] for name, t in matrices.items() if name.endswith(gate))
    ffn = Counter(
        tensor.shape[0]
        for name, tensor in matrices.items()
        if (up in name or f"{_PROJECTIONS['gate_proj']}." in name) and "lora_b_" in name
    )
    commonest = [counts.most_common(1)[0][0] if counts else None for counts in (width, ffn)]
    return (1 + max(layers) if layers else None, commonest[0], commonest[1])


def _some(names: Sequence[str]) -> str:
    rest = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"tensor {shortened(names[0], 200)}{rest} is"
