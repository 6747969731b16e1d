"""The use cases, a file each: what every door (command line, HTTP, drop folder, Dagster) does in the same way."""
