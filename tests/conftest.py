"""Applies to every test: a test that hangs ends the run."""

from tests.support.hang_detector import pytest_configure as pytest_configure
