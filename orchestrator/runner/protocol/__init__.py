"""What worker, keeper and child agree on: messages, run directories, values, targets."""
