"""Generators with a network, and the factory that makes any generator from a config."""
