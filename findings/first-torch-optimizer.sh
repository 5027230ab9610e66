#!/bin/bash
# Guess: after `import torch` an optimizer costs microseconds. Behaviour: the first one that a process makes imports some 800
# modules more, among them the compiler (torch._dynamo), torch.distributed, the ONNX exporter and sympy, although nothing is
# compiled, distributed or exported. That takes a second of processor time, about as long as `import torch`.
# Who meets it: all who start a process for each training, however short. Importing torch._dynamo before they fork avoids it.
# Seen with torch 2.13.0: 823 modules and 1.29 s of processor time for the first optimizer, 0 and 0.0001 s for the second;
#   with torch._dynamo imported beforehand 0 and 0.00 s for the first
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q 'torch==2.13.0' 'numpy==2.4.6'
cd "$work"
cat > first.py <<'PY'
import sys
import time

import torch


def made() -> tuple[int, float]:
    before, began = len(sys.modules), time.process_time()
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    return len(sys.modules) - before, time.process_time() - began


if sys.argv[1:] == ["ahead"]:
    import torch._dynamo
loaded = [name for name in ("torch._dynamo", "torch.distributed.tensor", "sympy") if name in sys.modules]
first, second = made(), made()
after = [name for name in ("torch._dynamo", "torch.distributed.tensor", "sympy") if name in sys.modules]
print(f"torch {torch.__version__}: loaded by the import {loaded}, after one optimizer {after}")
print(f"modules imported by the first optimizer {first[0]}, by the second {second[0]}")
print(f"processor seconds {first[1]:.2f} and {second[1]:.4f}")
if sys.argv[1:] == ["ahead"]:
    assert first[0] < 20, "with torch._dynamo imported beforehand little is left"
else:
    assert "torch._dynamo" not in loaded and "torch._dynamo" in after, "the optimizer imports it"
    assert first[0] > 400 and second[0] == 0
PY
"$work/venv/bin/python" first.py
"$work/venv/bin/python" first.py ahead
