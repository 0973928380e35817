"""Decides which model rests on which rung where; its view is a cache that it can rebuild."""
