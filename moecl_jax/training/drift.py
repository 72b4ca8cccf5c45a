"""Whether the loss of a stream has risen: ADWIN on each example's loss.

ADWIN (Bifet and Gavaldà 2007, "Learning from time-changing data with adaptive windowing", SIAM
SDM) keeps the newest values as long as no two parts of them differ in their means by more than
chance explains, and else drops the older part. Its bound is for values between 0 and 1, so a loss
of C labels counts as

    min(1, loss / ln C)

in which guessing is 1. A mean that has fallen is learning and no drift. river's ADWIN looks after
every 32 values.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from moecl_jax.errors import UserError


class Drift:
    """Watches the loss of one task.

    Attributes:
      losses: the losses so far, float32, from which the detector's state is made again.
    """

    def __init__(self, delta: float, losses: Iterable[float] = ()):
        """Begins to watch, or goes on where another one was.

        Args:
          delta: probability of an alarm without a drift, at each look; river's default is 0.002.
          losses: values that were watched before.

        Raises:
          UserError: river is not installed.
        """
        self._detector = _adwin(delta)
        self.losses: list[float] = []
        for loss in losses:
            self.rises(loss)

    def rises(self, loss: float) -> bool:
        """Whether the mean has risen with one more value, as `bounded` gives it."""
        detector, before = self._detector, self._detector.estimation
        self.losses.append(loss)
        detector.update(loss)
        return bool(detector.drift_detected and detector.estimation > before)


def bounded(loss: float, classes: int) -> float:
    """A loss in nats against that of guessing among so many labels, at most 1, as float32."""
    return float(np.float32(min(1.0, loss / math.log(max(classes, 2)))))


def _adwin(delta: float) -> Any:
    try:
        from river.drift import ADWIN  # takes more than a second, and is optional
    except ImportError as error:
        raise UserError(
            "drift is found by river, which is not installed: pip install 'moecl_jax[online]'"
        ) from error
    return ADWIN(delta=delta)
