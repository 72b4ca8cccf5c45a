"""Rows of slots: how long they are, and which row a sequence goes into."""

from collections.abc import Sequence

from moecl_jax.errors import UserError

# Row lengths: few, so that few shapes are compiled; above 32 none wastes more than a third.
ROW_LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)


def row_length(longest: int) -> int:
    """The smallest of `ROW_LENGTHS` that holds `longest` tokens."""
    for slots in ROW_LENGTHS:
        if longest <= slots:
            return slots
    raise UserError(
        f"an example of {longest} tokens (with its answers) exceeds the longest row, "
        f"{ROW_LENGTHS[-1]}; lower data.max_length"
    )


def first_fit(
    lengths: Sequence[int], slots: int, *, aligned: bool = False
) -> tuple[list[int], list[int]]:
    """Row and offset of each sequence, the longest placed first, in rows of so many slots.

    Args:
      lengths: slots of each sequence.
      slots: slots of a row; none may be longer.
      aligned: whether offsets are multiples of the sequences' `alignment`, else of 1.
    """
    used: list[int] = []
    rows, offsets = [0] * len(lengths), [0] * len(lengths)
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        multiple = alignment(lengths[index]) if aligned else 1
        most = slots - lengths[index]
        fitting = (row for row, taken in enumerate(used) if up(taken, multiple) <= most)
        row = next(fitting, len(used))
        if row == len(used):
            used.append(0)
        rows[index], offsets[index] = row, up(used[row], multiple)
        used[row] = offsets[index] + lengths[index]
    return rows, offsets


def alignment(length: int) -> int:
    """What a text's offset in its row is a multiple of, so that sums over the row do not tell it.

    XLA's CPU backend sums a row of float32 numbers, as a softmax does, by four vectors of 16
    numbers. Other texts add exact zeros. A text of two vectors has the same sum wherever they are
    added, for a + b = b + a; a longer one where its numbers always go to the same places of the
    same vectors.
    """
    return 16 if length <= 32 else 64


def up(number: int, multiple: int) -> int:
    """The least multiple that is not below a number."""
    return -(-number // multiple) * multiple
