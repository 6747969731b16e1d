"""The partition sets of the graph and how they depend on each other.

A partition is one tune or one render batch; its key is the id of the row in the registry. Keys are added by the
sensors (and by the Launchpad), never by the library.
"""

import dagster as dg

TUNES = "tunes"
RENDER_BATCHES = "render_batches"

tunes = dg.DynamicPartitionsDefinition(name=TUNES)
render_batches = dg.DynamicPartitionsDefinition(name=RENDER_BATCHES)

# A batch may hold prompts of any tunes. Dagster would silently guess the identity between two dynamic sets, so
# the edge says "all" and the metadata of each batch names the tunes it really used.
loras_of_batch = dg.AllPartitionMapping()
