#!/bin/bash
# Guess: a learning rate finder whose loss was NaN from the first batch on has nothing to suggest. Behaviour: torch-lr-finder runs all
# of its iterations and then suggests a learning rate, because NumPy's argmin of NaNs is the first of them: it is always the
# eleventh learning rate, the first that `skip_start` leaves. Nor does it leave things as they were, before or after `reset()`: the random numbers have moved
# on, and a model that was in eval mode stays in training mode.
# Who meets it: all who take the suggestion in a script, without looking at the plot.
# Seen with torch-lr-finder 0.2.2, torch 2.13.0:
#   100 losses, all NaN; suggested learning rate 6.43e-07; random numbers as before: False; eval mode as before: False
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch-lr-finder==0.2.2 torch==2.13.0
cat > look.py <<'PY'
import contextlib
import io
import math

import matplotlib
import torch
from torch.utils.data import DataLoader, TensorDataset
from torch_lr_finder import LRFinder

matplotlib.use("Agg")
torch.manual_seed(0)
model = torch.nn.Linear(4, 1).eval()
before = torch.get_rng_state()
finder = LRFinder(model, torch.optim.SGD(model.parameters(), lr=1e-7), lambda outputs, targets: outputs.sum() * math.nan)
loader = DataLoader(TensorDataset(torch.ones(64, 4), torch.ones(64, 1)), 8, shuffle=True)
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    finder.range_test(loader, end_lr=10, num_iter=100)
    _, suggested = finder.plot(suggest_lr=True)
    finder.reset()
losses = finder.history["loss"]
same = torch.equal(before, torch.get_rng_state())
print(f"{len(losses)} losses, all NaN; suggested learning rate {suggested:.3g};", end=" ")
print(f"random numbers as before: {same}; eval mode as before: {not model.training}")
assert len(losses) == 100 and all(map(math.isnan, losses)), losses
assert math.isclose(suggested, finder.history["lr"][10])
assert not same and model.training
PY
venv/bin/python look.py
