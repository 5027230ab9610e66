"""A program as the objective: started in the child, its metrics read from its output."""
