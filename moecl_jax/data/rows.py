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


def first_fit(lengths: Sequence[int], slots: int) -> tuple[list[int], list[int]]:
    """Row and offset of each sequence, the longest placed first, in rows of so many slots."""
    used: list[int] = []
    rows, offsets = [0] * len(lengths), [0] * len(lengths)
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = (row for row, taken in enumerate(used) if taken + lengths[index] <= slots)
        row = next(fitting, len(used))
        if row == len(used):
            used.append(0)
        rows[index], offsets[index] = row, used[row]
        used[row] += lengths[index]
    return rows, offsets


def up(number: int, multiple: int) -> int:
    """The least multiple that is not below a number."""
    return -(-number // multiple) * multiple
