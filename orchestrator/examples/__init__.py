"""Example objectives, to learn from and to try the program with."""
