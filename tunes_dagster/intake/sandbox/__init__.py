"""Child processes with limits, in which everything that a stranger sent is opened.

    limits.py   how much time and memory a file may take to be opened, by its size
    nursery.py  the process that children are forked from, as its parent sees it: start, restart, one task at a time
    pool.py     tasks: places, deadlines, what a child says, and what its end means for the one file it opened
    wire.py     how the processes talk: JSON with a length; never pickles, which whoever takes a child over could forge
    child/      what runs inside; nothing else of the package opens pictures, archives or workbooks

A process that needs a picture starts a *nursery* (`python -m tunes_dagster.intake.sandbox.child`). It has imported the
decoders and nothing else, neither torch nor our settings, and keeps no secret in its environment. It has one thread,
so it can fork children below web servers, Dagster runs and the command line alike; that takes milliseconds. A child
opens one file, or several of one owner, never those of two. Limits of the kernel hold for it (CPU time, memory, size
of what it writes), the nursery watches its resident memory, and the parent the clock. Whatever becomes of a child, its
parent gets one `Failure`, for that one file.

It is no jail: a decoder that is taken over by a forged file still runs as this user. It has no descriptors but the
file's, no environment, and cannot answer with anything but JSON and plain bytes that are checked.

Knows failures and settings; everybody may import it. Nothing here imports dagster or torch.
"""
