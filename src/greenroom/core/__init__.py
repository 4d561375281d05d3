"""Decisions: pure functions and values. No threads, sockets, sleeping, environment or clocks in here."""
