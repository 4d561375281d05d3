"""Measures Greenroom beside a peer on the same engine, in turn, on this machine. See README.md."""
