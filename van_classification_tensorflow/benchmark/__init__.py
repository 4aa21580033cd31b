"""`van benchmark`: speed, memory and size of models, measured side by side."""
