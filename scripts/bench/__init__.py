"""``make bench``: akidb-gateway and its peers, on the same weights, texts and machine, in one run."""
