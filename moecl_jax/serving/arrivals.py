"""Lines that arrive one after another: of a file that may grow, or of a pipe."""

import os
import select
import sys
from pathlib import Path
from typing import Self

from moecl_jax.errors import UserError
from moecl_jax.serving.rows import LONGEST_LINE
from moecl_jax.writing import named

_CHUNK = 2**16
_PATIENCE = 0.2  # seconds that a pipe is waited for


class Arrivals:
    """Reads whole lines as they arrive.

    Attributes:
      offset: bytes of the lines that were given, those of the beginning included.
      ended: whether nothing more can arrive: a pipe was closed. A file may always grow.
    """

    def __init__(self, source: Path, offset: int = 0):
        """Opens the input.

        Args:
          source: a file, or "-" for standard input.
          offset: bytes at the beginning of a file that are passed over; of a pipe, they have
            arrived before and do not come again.

        Raises:
          UserError: the file is shorter than that, or no line ends there.
          OSError: it cannot be opened.
        """
        self.source, self.offset, self.ended = source, offset, False
        self._piped = str(source) == "-"
        self._file = os.dup(sys.stdin.fileno()) if self._piped else os.open(source, os.O_RDONLY)
        self._rest = b""
        self._dropped = 0  # bytes of a line that is too long
        if not self._piped and os.fstat(self._file).st_size < offset:
            size = os.fstat(self._file).st_size
            self.close()
            raise UserError(
                f"{source} has {size} bytes, and {offset} of it were read before: it is another "
                "file, or was cut. Give the same file, grown or not"
            )
        if not self._piped and offset and os.pread(self._file, 1, offset - 1) != b"\n":
            self.close()
            raise UserError(
                f"{source} has no end of a line after {offset} bytes, up to where it was read "
                "before: it is another file, or was changed. Give the same file, grown or not"
            )
        if not self._piped:
            os.lseek(self._file, offset, os.SEEK_SET)

    def __enter__(self) -> Self:
        """The open input."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Closes the input."""
        os.close(self._file)

    @property
    def unfinished(self) -> bool:
        """Whether the beginning of a line is there, without its end."""
        return bool(self._rest or self._dropped)

    def next(self) -> bytes | ValueError | None:
        """The next line with its end, or that it is too long; None if no whole line is there now.

        A line without its end is whole if nothing more can arrive.
        """
        while b"\n" not in self._rest and self._read():
            if len(self._rest) > LONGEST_LINE and b"\n" not in self._rest:
                self._dropped, self._rest = self._dropped + len(self._rest), b""
        line, end, rest = self._rest.partition(b"\n")
        if not end and not (self.ended and self.unfinished):
            return None
        self._rest = rest
        dropped, self._dropped = self._dropped, 0
        self.offset += dropped + len(line) + len(end)
        if dropped or len(line) > LONGEST_LINE:
            return ValueError(f"the line has more than {LONGEST_LINE} bytes")
        return line + end

    def _read(self) -> bool:
        """Reads on; whether something was there."""
        if self.ended:
            return False
        if self._piped and not select.select([self._file], [], [], _PATIENCE)[0]:
            return False
        with named(self.source):
            found = os.read(self._file, _CHUNK)
        self._rest += found
        self.ended = self._piped and not found
        return bool(found)
