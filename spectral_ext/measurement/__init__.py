"""What every measurement shares: batches, checks, the state that it runs under and leaves behind, directions."""
