"""What training any BLIP shares: trainer, arguments, checkpoints, resumption, streams, sharding, memory."""
