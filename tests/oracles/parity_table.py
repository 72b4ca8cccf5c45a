"""Compares every model family with transformers' torch model, and writes docs/notes/parity.md.

    python tests/oracles/parity_table.py

Needs torch (CPU), and takes about two minutes on two cores.
"""

import platform
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import torch
import transformers

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from family_models import CASES, Parity, parity, run  # noqa: E402
from oracles.family_oracle import torch_model, torch_results  # noqa: E402

from moecl_jax.weights.load import load_backbone  # noqa: E402

INTRODUCTION = """\
# Parity with transformers

Every supported model family, on tiny random models (width 32, 3 layers, vocabulary 61, three texts
of 11, 7 and 4 tokens, longer than every sliding window), against transformers' own torch model in
float32 on CPU. transformers saves the model, `load_backbone` reads the folder, and both put the
same LoRA (rank 2, no factor zero) on all seven projections. Logits are compared with a text a row,
padded on the right, and with all texts packed into one row; gradients of the LoRA factors in the
packed row.

The command that made this table, in about two minutes on two cores (it needs torch):

```bash
python tests/oracles/parity_table.py
```

| model | `model_type` | logits, padded | logits, packed | gradients, relative |
| --- | --- | --- | --- | --- |
"""

LEGEND = """
Logits: the largest absolute difference over all tokens and the vocabulary; logits reach about 4.
Gradients: for each factor the largest absolute difference over the largest absolute entry; the
worst of the 14 factors is shown. Float32 itself keeps about 1e-7 of a number.
"""


def measure(case: str) -> Parity:
    """Compares one case with torch."""
    model = torch_model(CASES[case])
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return parity(run(load_backbone(folder)), torch_results(model))


def main() -> None:
    """Writes and prints the table."""
    transformers.logging.set_verbosity_error()
    rows = ""
    for case, config in CASES.items():
        numbers = " | ".join(f"{value:.1e}" for value in measure(case))
        rows += f"| {case} | `{config['model_type']}` | {numbers} |\n"
    versions = {"jax": jax, "numpy": np, "torch": torch, "transformers": transformers}
    listed = ", ".join(f"{name} {module.__version__}" for name, module in versions.items())
    table = (
        f"{INTRODUCTION}{rows}{LEGEND}\nMade with Python {platform.python_version()}, {listed}.\n"
    )
    file = TESTS.parent / "docs" / "notes" / "parity.md"
    file.parent.mkdir(exist_ok=True)
    file.write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
