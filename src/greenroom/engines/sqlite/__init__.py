"""The SQLite engine: a durable queue in one file, shared by the processes of one host."""
