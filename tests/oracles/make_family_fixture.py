"""Writes the fixture that checks every model family against transformers' torch models.

Anyone with torch (CPU) can run it again, from the root of the repository, in half a minute:

    python tests/oracles/make_family_fixture.py

tests/fixtures/families.npz holds for each case of tests/family_models.py, where configs, weights,
LoRA factors and texts are defined (right-padded batch, LoRA on all seven projections, float32):
  {case}/logits [22, 61] float32: logits at the tokens of the three texts, one after another.
  {case}/{projection}.{a,b} float32: gradient of sum(logits * cotangent) with respect to the LoRA
    factor, stacked over layers: [L, inputs, r] and [L, r, outputs].
"""

import sys
from pathlib import Path

import numpy as np
import torch

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from family_models import CASES  # noqa: E402
from oracles.family_oracle import torch_model, torch_results  # noqa: E402


def family_fixture() -> dict[str, np.ndarray]:
    """Returns the content of families.npz."""
    content = {}
    for case, config in CASES.items():
        results = torch_results(torch_model(config))
        content[f"{case}/logits"] = results.logits
        content |= {f"{case}/{name}": values for name, values in results.gradients.items()}
    return content


def main() -> None:
    """Writes the fixture."""
    torch.set_num_threads(2)
    file = TESTS / "fixtures" / "families.npz"
    np.savez_compressed(file, **family_fixture())
    print(f"{file.relative_to(TESTS.parent)}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
