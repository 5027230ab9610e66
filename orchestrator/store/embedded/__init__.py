"""The embedded PostgreSQL: one server per directory, shared by all commands that name it."""
