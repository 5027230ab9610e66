"""What a study teaches: what the model believes along parameters, of cells and of differences."""
