"""Hybrid hyperparameter tuning: an exact grid on the parameters that matter, a search over the rest, one shared Optuna study."""

__version__ = "0.1.0"
