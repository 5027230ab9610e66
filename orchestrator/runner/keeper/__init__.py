"""What the keeper runs: it imports the objective once, forks a child per attempt, and ends what
must end.
"""
