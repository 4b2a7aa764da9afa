"""Public functions over the compiled ops, one file an op."""
