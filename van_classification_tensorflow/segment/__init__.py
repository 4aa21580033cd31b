"""Dense prediction: a class for every pixel (`VANSegmenter`, `van segment`)."""
