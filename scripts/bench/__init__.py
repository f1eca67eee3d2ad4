"""``make bench``: akidb-gateway beside its peers, on the same weights, texts and machine, in one run."""
