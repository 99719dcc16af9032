"""What a chip is and how a dataset of them is read: codecs, store, splits, statistics, augmentation."""
