"""Features as Feast serves them. Feast takes 5-7 s to import: the modules of this package are imported when needed."""
