"""The child process: runs an attempt of a trial and gives the user's function its `trial`."""
