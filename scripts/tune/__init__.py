"""Which setting does what on this machine: ``make tune``."""
