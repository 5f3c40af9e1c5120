"""Tenants: quotas, API keys, revocations, unique settings."""
