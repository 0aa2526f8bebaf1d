"""Examinations: one question a file."""
