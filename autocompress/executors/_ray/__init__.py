"""The parts of the Ray executor: connecting, tasks, what they need, what is lost, files for other nodes, and sites."""
