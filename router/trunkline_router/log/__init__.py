"""The log: its interface, what every engine shares, and one folder per engine."""
