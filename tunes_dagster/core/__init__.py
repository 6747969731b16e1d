"""What everybody knows and what knows nobody: failures, options, settings, store, progress, clock, ids."""
