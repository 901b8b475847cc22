"""Everything that imports pyspark: the Beam runner and the jobs that are Spark's own."""
