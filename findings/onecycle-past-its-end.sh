#!/bin/bash
# Guess: after total_steps calls of step(), OneCycleLR rests at its final learning rate, or raises. Behaviour: the constructor is
# the first of the total_steps steps, so the usual loop (step after every batch) takes one too many; without an error the cosine
# swings back up, to the rate of the last step but one: 12,000 times the final one in a run of 10 steps. The next call raises.
# Who meets it: whoever logs the rate or saves a checkpoint after the last batch, or trains one batch more.
# torch 2.13.0, as seen (max_lr 1.0, total_steps 10):
#   rates of the last two steps   0.0495194  4e-06
#   after the tenth step()        0.0495194
#   the eleventh                  ValueError: Tried to step 11 times. The specified number of total steps is 10
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0
"$place/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torch.optim.lr_scheduler import OneCycleLR

print("torch", torch.__version__)
optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
schedule = OneCycleLR(optimizer, max_lr=1.0, total_steps=10)
rates = []
for _batch in range(10):
    rates.append(optimizer.param_groups[0]["lr"])
    optimizer.step()
    schedule.step()
after = optimizer.param_groups[0]["lr"]
print(f"rates of the last two steps  {rates[-2]:.6g}  {rates[-1]:.6g}")
print(f"after the tenth step()       {after:.6g}")
assert abs(rates[-1] - 4e-6) < 1e-12
assert after > 10_000 * rates[-1], "it rests at its final rate now"
assert abs(after - rates[-2]) < 1e-12
try:
    schedule.step()
except ValueError as error:
    print("the eleventh                 ValueError:", error)
else:
    raise AssertionError("the eleventh step does not raise any more")
PYTHON
