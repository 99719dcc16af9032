"""Weights to maps: prediction over scenes, lakes as vectors."""
