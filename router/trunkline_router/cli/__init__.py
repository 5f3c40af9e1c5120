"""The operator's command line: `trunkline-router tenant`."""
