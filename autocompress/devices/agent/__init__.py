"""The agent: an HTTP server by which a machine without torch measures and runs models for others."""
