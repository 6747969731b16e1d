"""Weights of other programs: read whole and at the strength they were trained at, or refused by name.

names.py       what the key of a tensor says: layer, part of an adapter, which network
scales.py      what an adapter is multiplied by, from its alpha or from the file's header
fitting.py     which of our layers they mean; everything that means none is named
shapes.py      the layers of bases that are installed, from the headers of their files
lycoris.py     LoHa and LoKr as plain LoRAs
converting.py  the adapter in our format, alpha folded in
taking.py      a tune's files of it

Key maps were written down from the programs' own documents and code; `tests/training/test_foreign.py` holds them
against what diffusers loads.
"""
