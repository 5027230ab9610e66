"""Which cell gets the next trial, and how good each cell's optimum is believed to be."""
