#!/bin/bash
# Guess: `optimizer.step(closure)` with a closure as torch's own optimizers take it (empties gradients, forward, backward, returns
# the loss) makes a step of SAM. Behaviour: pytorch_optimizer's SAM evaluates the closure once, after a perturbation by the gradients
# it finds; without a backward pass before it finds none, perturbs by nothing, and the step is that of the base optimizer, with no
# error and no warning. Who meets it: all who move a training with closures (LBFGS, Lightning) to SAM: they compare SGD with SGD.
# Seen with pytorch_optimizer 4.1.0 and torch 2.13.0:
#   closure alone: 1 evaluation, largest difference from SGD's step 0.0; after a backward pass: 1 evaluation, 0.0336
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check 'torch==2.13.0' 'numpy>=2' 'pytorch_optimizer==4.1.0'
cat > steps.py <<'PY'
import warnings
import torch
from pytorch_optimizer import SAM

warnings.simplefilter("error")
torch.set_num_threads(1)


def step(kind):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    inputs, targets = torch.randn(16, 4), torch.arange(16) % 3
    if kind == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    else:
        optimizer = SAM(model.parameters(), base_optimizer=torch.optim.SGD, lr=0.5, rho=0.5)
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    if kind == "after a backward pass":
        closure()
        calls = 0
    optimizer.step(closure)
    return calls, torch.cat([p.detach().flatten() for p in model.parameters()])


_, sgd = step("sgd")
found = {}
for kind in ("closure alone", "after a backward pass"):
    calls, weights = step(kind)
    found[kind] = calls, round(float((weights - sgd).abs().max()), 4)
print("evaluations and largest difference from SGD's step:", found)
assert found["closure alone"] == (1, 0.0), found
assert found["after a backward pass"][0] == 1, found
assert found["after a backward pass"][1] > 0.001, found
PY
venv/bin/python steps.py
