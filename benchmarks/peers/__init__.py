"""The programs that are measured: one module each, with the same few functions (see ``producer.App``)."""
