"""The revisions of the registry's schema, oldest first."""
