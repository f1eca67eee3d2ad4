"""Every command of the guides, run as it is written: ``make check-guides``."""
