"""Callbacks: what is told to the callers' own servers, and how it gets there."""
