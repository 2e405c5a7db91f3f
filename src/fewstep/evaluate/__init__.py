"""Measures of a few-step model that need no download: recognition, backgrounds, set distances, distances to the teacher."""
