#!/bin/bash
# Guess: Optuna's importances say what it takes to be good at an objective, whichever its direction, as they do for one objective.
# Behaviour: with several objectives `plot_param_importances` draws for each how to reach *low* values, also where it is maximised:
# the bars then name the parameter that makes a trial the worst. It hands its own `target=lambda t: t.values[i]` to PED-ANOVA, which
# takes every target for a loss. The warning that it should be multiplied by -1 goes to somebody who gave no target, and comes for
# minimised objectives too. The same objective alone, maximised, is drawn right.
# Who meets it: all who tune accuracy against cost with both in one study, and drop the parameter with the small bar.
# Seen with optuna 5.0.0 and plotly 6.3.1; `up` alone makes the best fifth, `down` alone the worst fifth, 500 random trials:
#   accuracy maximised alone: up 0.99, down 0.01; the same with cost: up 0.02, down 0.98, the bars of an accuracy to be minimised
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check optuna==5.0.0 plotly==6.3.1
cat > look.py <<'PY'
import warnings

import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)


def bars(*directions):
    """The importances drawn for the first objective, and the warnings."""

    def objective(trial):
        up, down = trial.suggest_float("up", 0, 1), trial.suggest_float("down", 0, 1)
        accuracy = 0.5 + max(up - 0.8, 0) - max(down - 0.8, 0)
        return accuracy if len(directions) == 1 else (accuracy, trial.suggest_float("cost", 0, 1))

    study = optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=500)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        drawn = optuna.visualization.plot_param_importances(study).data[0]
    found = {name: round(share, 2) for name, share in zip(drawn.y, drawn.x)}
    return found, any("multiplying" in str(warning.message) for warning in said)


alone, _ = bars("maximize")
both, told = bars("maximize", "minimize")
lowest, told_too = bars("minimize", "minimize")
print("maximised alone:", alone)
print("maximised, with cost:", both)
print("minimised, with cost:", lowest)
assert alone["up"] > 0.9 > 0.1 > alone["down"], alone
assert both["down"] > 0.9 > 0.1 > both["up"], both
assert both == lowest
assert told and told_too
PY
venv/bin/python look.py
