"""Where scripts that were written for 0.1 look for parts that have moved since.

Nothing in GAL-D2 imports this package; it goes with 0.3.
"""

import warnings

warnings.warn(
    "gal_d2.data has moved: docs/layout.md says what is where, and gal_d2 itself has InstancePool, "
    "PoolWriter, CutOut and CopyPasteMapper.",
    DeprecationWarning,
    stacklevel=2,
)
