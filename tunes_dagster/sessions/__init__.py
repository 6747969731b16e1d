"""What holds a device: takes work from the registry the moment it is there, keeps bases loaded, and takes turns.

Plain Python. Who wants to tell the story elsewhere (Dagster, a log) implements `journal.Journal`.
"""
