"""`Classifier`, `van predict` and `accelerate`: pictures to ranked labels, features or outputs."""
