"""The operating system as an attempt sees it: Linux, memory, streams, the facts of an
environment.
"""
