"""Chips to weights: losses, optimiser, task, callbacks."""
