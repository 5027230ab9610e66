"""Prints the words it was called with, as one line of JSON."""

import json
import sys


def main() -> None:
    print(json.dumps(sys.argv[1:]))
