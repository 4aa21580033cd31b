"""One forward pass, computed by NumPy or by the runtime of an exported file."""
