"""Model code shared by all tasks: attention, loading, adapters, quantisation, processors, weight files."""
