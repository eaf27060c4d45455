"""Installs the simulated GPU's kernels as soon as torch has been imported; see build.py."""

import importlib.abc
import importlib.util
import os
import sys

if "SIMULATED_GPU" in os.environ:

    class AfterTorch(importlib.abc.MetaPathFinder):
        """Imports simulated_gpu behind the first import of torch."""

        def find_spec(self, name, path, target=None):
            """Return torch's own spec, with one more line to run."""
            if name != "torch":
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec("torch")
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                import simulated_gpu  # noqa: F401 - it installs itself

            spec.loader.exec_module = exec_module
            return spec

    sys.meta_path.insert(0, AfterTorch())
