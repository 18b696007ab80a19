"""Submitting, watching and adopting jobs, and the environments that payloads run in."""
