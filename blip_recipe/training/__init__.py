"""Training code shared by all tasks: trainer, arguments, checkpoints, resumption, streams, sharding, memory."""
