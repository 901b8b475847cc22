"""Stand-ins for services that no test machine has."""
