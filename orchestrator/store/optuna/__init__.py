"""What we write into Optuna's own tables."""
