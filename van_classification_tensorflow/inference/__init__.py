"""`Classifier` and `van predict`: pictures to ranked labels or features."""
