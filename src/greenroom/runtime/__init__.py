"""The runtime: the pump, the executors, and the processes around them."""
