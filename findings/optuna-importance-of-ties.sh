#!/bin/bash
# Guess: Optuna's default importance (PED-ANOVA, target_quantile=0.1) says what it takes to be in the best tenth of the trials.
# Behaviour: all trials that tie with the last of that tenth are taken for the best as well. With a coarse metric that may be nine
# tenths of the study, and the importances then say what it takes not to be among the worst: the one parameter that the best trials
# have in common gets almost nothing, without a warning. Noise far below the metric's steps turns the figures round.
# Who meets it: all whose metric takes few values, such as the accuracy on a small set or the share of episodes that succeed.
# Seen with optuna 5.0.0, 500 random trials, success in 0 to 5 of 5 episodes; `finds` > 0.94 alone brings 5, `fails` > 0.9 brings 0,
# all else brings 4:
#   as counted: finds 0.01, fails 0.99; with noise of 0.001: finds 1.00, fails 0.00
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check optuna==5.0.0
cat > look.py <<'PY'
import random
import warnings

import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)


def importances(noise):
    draws = random.Random(0)

    def objective(trial):
        finds, fails = trial.suggest_float("finds", 0, 1), trial.suggest_float("fails", 0, 1)
        successes = 5 if finds > 0.94 else 0 if fails > 0.9 else 4
        return successes / 5 + noise * draws.gauss(0, 1)

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=500)
    best = [trial.params["finds"] for trial in study.trials if trial.value > 0.9]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = optuna.importance.get_param_importances(study)
    return {name: round(found[name], 2) for name in ("finds", "fails")}, best, len(said)


counted, best, warned = importances(0.0)
noisy, _, _ = importances(0.001)
print(f"{len(best)} of 500 trials are the best, all with finds > {min(best):.2f}")
print("as counted:", counted)
print("with noise of 0.001:", noisy)
assert min(best) > 0.94 and len(best) < 50
assert counted["finds"] < 0.1 < 0.9 < counted["fails"], counted
assert noisy["finds"] > 0.9 > 0.1 > noisy["fails"], noisy
assert warned == 0
PY
venv/bin/python look.py
