"""Scenarios, one module each; `run` measures Trunkline and its baselines and returns figures."""
