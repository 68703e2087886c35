"""Publishing to the Hub: preflight, push, retries, checkpoint upload."""
