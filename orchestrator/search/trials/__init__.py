"""The trials as samplers look at them: an in-memory study, columns of numbers, candidates."""
