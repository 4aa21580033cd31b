"""One forward pass, many ways: NumPy, Keras, the runtimes of graphs and of exported files."""
