"""Labelled pictures: class folders, variants of ImageNet, TFDS, digits."""
