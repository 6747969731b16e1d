"""Training: families, adapters, caches, the loop, export, verification."""
