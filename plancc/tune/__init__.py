"""Search what a plan leaves open: the values of its parameters, for a model on a cluster."""
