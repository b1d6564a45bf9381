"""The tests. BLAS keeps to one thread, as in the program: NumPy reads this when it is imported."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
