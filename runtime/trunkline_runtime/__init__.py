"""Code that edge and router share: process start, logs, certificates, rate limits, tenant policies."""
