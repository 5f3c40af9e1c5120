"""The operator's command line: `python -m router tenant`."""
