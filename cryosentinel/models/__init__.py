"""Arrays to logits: the segmenter, test-time augmentation, soups and checkpoints."""
