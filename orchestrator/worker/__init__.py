"""One worker's life: registering, claiming, running attempts, delivering their results, ending."""
