"""What was asked of the product and measured: a folder a study, see README.md. Nothing of it is shipped.

The studies' gates are registered here, before a script imports what reads recipes. Where that was imported first, as by
the command line with a study's reward, the gates are those of the package alone.
"""

import sys

if "adagrpo.config" not in sys.modules:
    import research.gates  # noqa: F401
