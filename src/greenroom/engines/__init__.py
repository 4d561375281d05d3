"""Engines: each a ``Transport``, a ``Store`` or both, one folder an engine."""
