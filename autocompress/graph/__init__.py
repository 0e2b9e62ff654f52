"""A torch model seen as layers, channel groups and MACs."""
