"""Connections, transactions and prepared statements: what may fail, and what travels together."""
