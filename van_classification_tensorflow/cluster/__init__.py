"""On a Ray cluster: training, prediction, evaluation and serving (the extra `cluster`)."""
