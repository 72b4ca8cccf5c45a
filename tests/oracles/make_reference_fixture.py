"""Cuts the tensors that one training step touches out of the original implementation's dump.

    python tests/oracles/make_reference_fixture.py PATH/TO/moe_cl_tiny.npz

writes `tests/fixtures/moe_cl_tiny.npz`. The dump holds what the original PyTorch modules computed
in float32 on a tiny random Llama (vocabulary 97, width 32, FFN 64, 3 layers, 4 heads, 2 key and
value heads), 4 tasks, rank 4, lora_alpha 8, task "amazon" (expert 2, discriminator class 1),
adversarial weight 0.3, AdamW 2e-4 with weight decay 0.01. Experts and heads of the other tasks,
which no step touches, are left out.
"""

import re
import sys
from pathlib import Path

import numpy as np

UNTOUCHED = re.compile(r"adapter\d\..*(expert[134]\.|(agnews|dbpedia|yahoo)_score_)")


def main() -> None:
    """Writes the fixture."""
    dump = np.load(sys.argv[1])
    kept = {name: dump[name] for name in dump.files if not UNTOUCHED.search(name)}
    target = Path(__file__).parent.parent / "fixtures" / "moe_cl_tiny.npz"
    np.savez_compressed(target, **kept)
    print(f"{target}: {len(kept)} of {len(dump.files)} tensors, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
