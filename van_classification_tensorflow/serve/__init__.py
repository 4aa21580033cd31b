"""`van serve`: pictures to answers over HTTP. Nothing here imports Keras."""
