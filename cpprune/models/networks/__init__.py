"""Network families, one per module; the module has the family's name.

How to add one is in `cpprune.models.registry`. Their names are known without importing torch.
"""

from pkgutil import iter_modules

NAMES = tuple(module.name for module in iter_modules(__path__))
