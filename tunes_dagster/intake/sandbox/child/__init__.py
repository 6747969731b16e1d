"""What runs inside the nursery and its children. Everybody else goes through `sandbox.pool`.

__main__.py   the nursery: forks a child per task, watches them, tells how each ended
kernel.py     the limits of one child
tasks.py      what a child can be asked for
headers.py    what a picture's file says of itself, counted before a decoder follows it
isobmff.py    the same for HEIF and AVIF
tiffs.py      the same for TIFF
pictures.py   decoding, and the normalised form that the store keeps
colour.py     strips of any picture as upright 8-bit sRGB; encodings.py, deep.py what its numbers mean
archives.py   zip and tar, member by member
tables.py     workbooks
weights.py    safetensors files
"""
