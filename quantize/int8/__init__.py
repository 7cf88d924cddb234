"""Q/DQ put into a graph, with the codes of weights and biases."""
