"""Measures of a few-step model that need no download: recognition, backgrounds, distances to sets and teacher."""
