"""Load tests with thresholds, faults, integration tests, and the report about them."""
