"""Training: which neighbours, which loss, which route to its gradient, and the loop."""
