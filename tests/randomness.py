"""What tests of random numbers share."""

import numpy as np


def assert_uncorrelated(first: np.ndarray, second: np.ndarray) -> None:
    """Fails unless two samples' correlation is within five standard deviations of none."""
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 * len(first) ** -0.5
