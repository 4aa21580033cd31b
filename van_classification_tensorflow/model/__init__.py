"""Keras: layers, blocks and the graph of the paper; weights into it; fused; as applications."""
