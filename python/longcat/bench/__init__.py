"""Benchmarks behind `longcat bench`: a load generator for servers, and an engine in this process."""
