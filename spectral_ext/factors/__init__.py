"""Running Kronecker factors and their largest eigenpairs."""
