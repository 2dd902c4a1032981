"""Rollout: the engine that writes answers, the episodes played with it, the worker process around both."""
