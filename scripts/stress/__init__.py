"""``make chaos`` and ``make overload``: a gateway under faults, and under more than it can compute."""
