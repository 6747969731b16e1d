"""Rendering: prompts become pictures, and pictures become sheets, plots and pages that a person looks at.

`sheets`, `plots`, `pages`, `png`, `prompts` and `sizes` need no torch; `renderer` and `schedulers` import it
inside their functions.
"""
