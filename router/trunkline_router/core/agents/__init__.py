"""Agents: workers, deliveries, settlement."""
