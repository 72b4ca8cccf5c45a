"""The mesh of devices, and where each array lies on it.

Axes of the mesh: the rows of a batch are split over `data` and `fsdp`; matrices are split over
`fsdp`, which gathers a layer's when it is its turn, and over `tensor`, which multiplies them in
parts. `RULES` is the whole table.

Host memory knows nothing of the mesh: what is saved is NumPy, so that a checkpoint fits any mesh.
With several processes all of them read the same data and take the same steps; each device gets its
part, and the first process alone writes files and messages.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from moecl_jax.errors import UserError, one_line

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")


class TokenRows(Protocol):
    """A dataclass with token ids in rows, and for each what the decoder must know of it.

    Attributes:
      tokens: `[R, S]` ids.
      positions: `[R, S]`, position of each token in its own text.
      segments: `[R, S]`, 0 for padding, else which text of the row.
      branches: `[R, S]`, 0 for the prompt, else which continuation.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    tokens: Any
    positions: Any
    segments: Any
    branches: Any


Rows = TypeVar("Rows", bound=TokenRows)

# (end of an array's path, mesh axis of each of its last axes). The first that matches holds; what
# none matches is on every device. Leading axes (layers, tasks) are never split. A quantised kernel
# is two arrays, its integers and their scales.
_INTO = r"(q|k|v|gate|up)_proj"
_OUT_OF = r"(o|down)_proj"
Axis = str | tuple[str, ...] | None
RULES: tuple[tuple[str, tuple[Axis, ...]], ...] = (
    (r"embedding", (("fsdp", "tensor"), None)),
    (rf"({_INTO}|lm_head)/kernel", ("fsdp", "tensor")),
    (rf"{_OUT_OF}/kernel", ("tensor", "fsdp")),
    (rf"{_INTO}/bias", ("tensor",)),
    (rf"{_INTO}/a", ("fsdp", None)),
    (rf"{_INTO}/b", (None, "tensor")),
    (rf"{_OUT_OF}/a", ("tensor", None)),
    (rf"{_OUT_OF}/b", (None, "fsdp")),
)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where arrays lie.

    Attributes:
      mesh: mesh with the axes `AXES`; None for one device, where nothing has to be placed.
    """

    mesh: Mesh | AbstractMesh | None = None

    @classmethod
    def over(cls, sizes: Mapping[str, int]) -> "Placement":
        """A mesh over all devices; a size of -1 takes those that the others leave.

        Raises:
          UserError: the sizes do not multiply to the number of devices.
        """
        count, processes = jax.device_count(), jax.process_count()
        shape = _shape(sizes)
        if shape is None:
            asked = ", ".join(f"{axis} = {sizes[axis]}" for axis in AXES)
            raise UserError(
                f"config: mesh ({asked}) must multiply to the {count} devices there are, or to 1 "
                "for one of them; one size may be -1, for what the others leave"
            )
        if math.prod(shape) == 1 and processes > 1:
            raise UserError(
                f"config: mesh has one device, and {processes} processes are running; set "
                f"mesh.data = -1 for all {count} devices"
            )
        if math.prod(shape) == 1:
            return cls()
        return cls(jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES)))

    @property
    def one_cpu(self) -> bool:
        """Whether steps run on the host's processor, undivided."""
        return self.mesh is None and jax.default_backend() == "cpu"

    @property
    def device_count(self) -> int:
        """Devices that steps run on."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def row_shards(self) -> int:
        """In how many parts the rows of a batch are split."""
        return 1 if self.mesh is None else self._parts(ROWS)

    def put(self, tree: Any) -> Any:
        """Parameters, or what has their structure, from host or device to where `RULES` say."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)

        def place(leaf: Any, sharding: NamedSharding) -> jax.Array:
            if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
                return leaf
            if _is_key(leaf):
                data = place(jax.random.key_data(leaf), self._sharding())
                return jax.random.wrap_key_data(data)
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
                return jax.jit(lambda x: x, out_shardings=sharding)(leaf)
            values = np.asarray(leaf)
            return jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])

        return jax.tree.map(place, tree, self._shardings(tree))

    def shapes(self, tree: Any) -> Any:
        """The shapes of what `put` gives, from arrays or shapes; nothing is allocated."""
        if self.mesh is None:
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            tree,
            self._shardings(tree),
        )

    def bytes_per_device(self, tree: Any) -> int:
        """What one device holds of parameters, of which only shapes need to be known."""

        def size(path: Any, leaf: Any) -> int:
            if _is_key(leaf):
                return 0
            whole = int(leaf.size * leaf.dtype.itemsize)
            if self.mesh is None:
                return whole
            return whole // math.prod(map(self._parts, self._axes(path, leaf.shape)))

        return sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(size, tree)))

    def host(self, tree: Any) -> Any:
        """NumPy arrays of what lies on the devices of all processes."""
        if self.mesh is None or jax.process_count() == 1:
            return jax.tree.map(np.asarray, tree)
        return multihost_utils.process_allgather(tree, tiled=True)

    # The rest is for compiled functions.

    def keep(self, tree: Any) -> Any:
        """Holds results that have the structure of parameters where `RULES` say."""
        if self.mesh is None:
            return tree
        return jax.tree.map(
            lambda leaf, sharding: (
                jax.lax.with_sharding_constraint(leaf, sharding) if not _is_key(leaf) else leaf
            ),
            tree,
            self._shardings(tree),
        )

    def everywhere(self, tree: Any) -> Any:
        """Gives every device the whole of small results, so that each process can read them."""
        if self.mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, self._sharding())

    def split_rows(self, batch: Rows) -> Rows:
        """A batch whose arrays of token rows, `[R, S]`, are split by rows; the rest as it is."""
        if self.mesh is None:
            return batch
        return dataclasses.replace(
            batch,
            tokens=self.split_tokens(batch.tokens),
            positions=self.split_tokens(batch.positions),
            segments=self.split_tokens(batch.segments),
            branches=self.split_tokens(batch.branches),
        )

    def split_tokens(self, x: jax.Array) -> jax.Array:
        """An array whose first axis is rows or their tokens, `[N, D]`, split by it."""
        if self.mesh is None or x.shape[0] % self.row_shards:
            return x
        return jax.lax.with_sharding_constraint(x, self._sharding(ROWS))

    def _shardings(self, tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: self._sharding(*self._axes(path, leaf.shape)), tree
        )

    def _axes(self, path: Any, shape: tuple[int, ...]) -> list[Axis]:
        """Mesh axis of each axis of an array; an axis that cannot be split evenly is not."""
        assert self.mesh is not None
        name = "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
        for pattern, last in RULES:
            if re.search(rf"(^|/){pattern}(/values|/scale)?$", name) and len(shape) >= len(last):
                axes = [*(None,) * (len(shape) - len(last)), *last]
                return [
                    None if length % self._parts(axis) else axis
                    for axis, length in zip(axes, shape, strict=True)
                ]
        return []

    def _parts(self, axis: Axis) -> int:
        assert self.mesh is not None
        names = (axis,) if isinstance(axis, str) else axis or ()
        return math.prod(self.mesh.shape[name] for name in names)

    def _sharding(self, *axes: Any) -> NamedSharding:
        assert self.mesh is not None
        return NamedSharding(self.mesh, PartitionSpec(*axes))


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


ONE_DEVICE = Placement()


def fits(sizes: Mapping[str, int]) -> bool:
    """Whether the devices here can form a mesh of these sizes."""
    return _shape(sizes) is not None


def _shape(sizes: Mapping[str, int]) -> tuple[int, ...] | None:
    """The mesh's shape with a -1 replaced; None where it does not fit the devices."""
    shape, count = [sizes[axis] for axis in AXES], jax.device_count()
    known = math.prod(size for size in shape if size != -1)
    if shape.count(-1) == 1 and known > 0 and count % known == 0:
        shape = [count // known if size == -1 else size for size in shape]
    return tuple(shape) if min(shape) >= 1 and math.prod(shape) in {1, count} else None


def join(coordinator: str, process: str | None) -> None:
    """Makes this process one of several; before anything else asks JAX for devices.

    Args:
      coordinator: HOST:PORT of the first process, or "auto" where Slurm, a TPU pod or Kubernetes
        tells all there is to know.
      process: "I/N", the 0-based I of N processes; None with "auto".

    Raises:
      UserError: an argument is malformed, or the others cannot be found.
    """
    address = re.fullmatch(r".+:\d+", coordinator)
    numbers = re.fullmatch(r"(\d+)/(\d+)", process or "")
    told = address and numbers and int(numbers[1]) < int(numbers[2])
    if not told and (coordinator, process) != ("auto", None):
        raise UserError(
            "give --coordinator=HOST:PORT --process=I/N with I from 0 to N - 1, or "
            "--coordinator=auto alone"
        )
    try:
        if numbers is None:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, int(numbers[2]), int(numbers[1]))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--coordinator={coordinator}: {one_line(error)}") from error


def first_process() -> bool:
    """Whether this process writes files and messages."""
    return jax.process_index() == 0


def preempted(step: int) -> bool:
    """Whether several processes that train together are to save after this step and stop.

    One of them has got SIGTERM; all of them learn of it, and agree on a step. A process that trains
    alone is told by its own signals.

    Args:
      step: number of the step, the same in all processes; each of them asks after every step.
    """
    if jax.process_count() == 1:
        return False
    try:
        return bool(multihost_utils.reached_preemption_sync_point(step))
    except RuntimeError:  # the user has switched JAX's service off
        return False


def wait_for_all(name: str) -> None:
    """Lets no process pass before all have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
