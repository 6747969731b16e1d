"""The report card of a tune: what it learned, what it lost, which checkpoint is published, and when to say no.

prompts.py    what is rendered for the card, the same for every tune of a class
scorers.py    the models that look at pictures (catalog: scorers.yaml)
measures.py   numbers from embeddings: likeness, obedience, variety, copying, coherence
verdicts.py   sentences from numbers
card.py       the card itself, as it lies in the store
scoring.py    renders and measures base and checkpoints
showing.py    sheet, curve and page
publishing.py the chosen checkpoint as the tune's files
"""
