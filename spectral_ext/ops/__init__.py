"""The public functions over the compiled ops."""
