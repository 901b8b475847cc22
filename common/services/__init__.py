"""Kafka, a schema registry and a Redis server as local processes, and the Java they run on.

For a laptop and for tests: loopback only, no root, no container. Any of them is replaced by an address in the settings.
"""
