"""The parts of the Ray executor: connecting, its tasks, what is lost, files for other nodes, and sites there."""
