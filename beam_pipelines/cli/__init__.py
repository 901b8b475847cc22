"""The command line: one file per command group. Heavy imports (Beam, Feast, Spark) happen inside the commands."""
