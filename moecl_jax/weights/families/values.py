"""Checked reading of the JSON object in a config.json."""

import dataclasses
from pathlib import Path
from typing import Any

from moecl_jax.errors import UserError
from moecl_jax.models.config import LEAST_NUMBER, MOST_NUMBER, MOST_SIZE
from moecl_jax.outside import shortened


@dataclasses.dataclass(frozen=True)
class Values:
    """Checked access to a JSON object.

    Attributes:
      raw: the object.
      file: where it came from, for messages.
      prefix: what stands before its keys in messages.
    """

    raw: dict[str, Any]
    file: Path
    prefix: str = ""

    def integer(
        self, key: str, default: int | None = None, *, least: int = 1, most: int = MOST_SIZE
    ) -> int:
        """A whole number; `default` stands in for null and a missing key."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            expected = "a positive integer" if least == 1 else f"an integer of at least {least}"
            limit = f", at most {most}" if isinstance(value, int) and value > most else ""
            raise self._error(key, value, expected + limit)
        return value

    def number(
        self,
        key: str,
        default: float | None = None,
        *,
        least: float = LEAST_NUMBER,
        most: float = MOST_NUMBER,
    ) -> float:
        """A number above zero; `default` stands in for null and a missing key."""
        value = self._get(key, default)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not least <= value <= most:
            limits = f" from {least:g} to {most:g}" if number and value > 0 else ""
            raise self._error(key, value, f"a positive number{limits}")
        return float(value)

    def truth(self, key: str) -> bool:
        """True or false; false where the key is missing."""
        value = self.raw.get(key, False)
        if not isinstance(value, bool):
            raise self._error(key, value, "true or false")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """An object; empty for null and a missing key."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self._error(key, value, "an object or null")
        return value

    def _get(self, key: str, default: Any) -> Any:
        value = self.raw.get(key)
        return default if value is None else value

    def _error(self, key: str, value: Any, expected: str) -> UserError:
        return UserError(
            f"{self.file}: {self.prefix}{key} is {shortened(value)}; expected {expected}. "
            "Download the file again."
        )
