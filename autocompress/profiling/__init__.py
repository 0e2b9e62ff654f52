"""A micro-benchmark that finds what is fast on a machine, and writes it down as a hardware profile."""
