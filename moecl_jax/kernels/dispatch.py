"""The registry of kernels, and the switch between their fast and their plain forms."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar, cast

import jax

from moecl_jax.errors import UserError
from moecl_jax.kernels import reference

Form = Literal["fast", "reference"]
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The two forms of one array function, which take the same arguments.

    Attributes:
      fast: written for a processor.
      reference: written for a reader, in plain `jnp`.
    """

    fast: Callable[..., Any]
    reference: Callable[..., Any]


KERNELS: dict[str, Kernel] = {}
_chosen: Form = "fast"


def kernel(fast: _Function) -> _Function:
    """Registers a fast function beside its twin, the function of that name in `reference`.

    Returns:
      The function that models call. It runs the form that `use` has chosen; the choice is read
      while JAX traces, so that a compiled function does not look it up.

    Raises:
      AttributeError: `reference` has no function of that name.
    """
    forms = Kernel(fast, getattr(reference, fast.__name__))
    KERNELS[fast.__name__] = forms

    @functools.wraps(fast)
    def chosen(*args: Any, **kwargs: Any) -> Any:
        return (forms.fast if _chosen == "fast" else forms.reference)(*args, **kwargs)

    return cast(_Function, chosen)


@contextlib.contextmanager
def use(form: Form) -> Iterator[None]:
    """Chooses the form of all kernels for the body of a `with` statement.

        with kernels.use("reference"):
            trainer.run()

    What JAX compiled before has the other form in it, so its caches are emptied on the way in and
    out. The choice holds for the whole process, not for one thread.

    Args:
      form: "fast", which is the default, or "reference": the plain mathematics, to read and to
        debug by. It is slow, and where arrays are bfloat16 it rounds in other places.

    Raises:
      UserError: there is no such form.
    """
    if form not in ("fast", "reference"):
        raise UserError(f"kernels.use({form!r}): expected 'fast' or 'reference'")
    before = _chosen
    _choose(form)
    try:
        yield
    finally:
        _choose(before)


def _choose(form: Form) -> None:
    global _chosen
    if form != _chosen:
        _chosen = form
        jax.clear_caches()
