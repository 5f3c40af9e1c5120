"""Input checks: the one place that enforces the limits stated in the contract."""
