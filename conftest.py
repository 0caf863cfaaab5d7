"""Loads the leak checks for every test; fixtures live in tests/conftest.py."""

pytest_plugins = ["tests.leaks"]
