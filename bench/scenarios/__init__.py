"""One file a scenario; each has a `run` that measures the bridge and its baselines, and returns figures."""
