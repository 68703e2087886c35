"""What every BLIP shares: attention, loading, adapters and quantisation, processors, weight files."""
