#!/bin/bash
# Guess: asynchronous successive halving keeps the best 1 of `reduction_factor` trials of a rung, so with fewer trials than that in
# a rung it stops none, as Ray Tune's and Syne Tune's do. Behaviour: Optuna's SuccessiveHalvingPruner then lets only a trial pass that
# is the best so far. So it is strictest where it knows least: the second trial of a study is pruned at its first rung if it is worse
# than the first, by however little, and with trials that come from the best to the worst all but the first are.
# Who meets it: all who use `asha` (or Hyperband, which consists of it) in small studies, or inside the cells of a grid.
# Seen with optuna 5.0.0, min_resource=1, reduction_factor=4, values 1.00, 1.01, 1.02, … at step 1:
#   worse and worse: 1 of 8 pass; better and better: 8 of 8 pass; of the worse ones 0 of the first 3 peers
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check optuna==5.0.0
cat > look.py <<'PY'
import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)


def passing(values):
    study = optuna.create_study(pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=4))
    passed = []
    for value in values:
        trial = study.ask()
        trial.report(value, 1)
        pruned = trial.should_prune()
        passed.append(not pruned)
        state = optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE
        study.tell(trial, None if pruned else value, state=state)
    return passed


values = [1.0 + k / 100 for k in range(8)]
worse, better = passing(values), passing(values[::-1])
print(f"worse and worse: {sum(worse)} of 8 pass; better and better: {sum(better)} of 8 pass;", end=" ")
print(f"of the worse ones {sum(worse[1:4])} of the first 3 peers")
assert worse == [True] + [False] * 7, worse
assert better == [True] * 8, better
PY
venv/bin/python look.py
