"""The package `mock`, which some of Beam's test modules import: the standard library's under its old name.

A file, on the path of this process and of Spark's Python workers: they import the test modules, too.
"""

import unittest.mock

vars().update({name: value for name, value in vars(unittest.mock).items() if not name.startswith("__")})

version_info = (5, 2, 0)  # `parameterized` looks at it
