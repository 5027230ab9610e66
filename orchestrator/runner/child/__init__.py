"""What the child runs: one attempt of one trial, with the `trial` that the user's function gets."""
