# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A folder is its own registry: families, tasks and data sources are modules, found by name.

names("tl_jax.models")            # ('bert', 'resnet', 'vit')
find("tl_jax.models", "bert")     # the module
find("tl_jax.tasks", "my_package.my_task")
"""

import importlib
import pkgutil
import types

from tl_jax.core.errors import UserError, did_you_mean


def names(package: str) -> tuple[str, ...]:
    """The modules in the package's folder, sorted."""
    folder = importlib.import_module(package).__path__
    return tuple(sorted(module.name for module in pkgutil.iter_modules(folder) if not module.name.startswith("_")))


def find(package: str, name: str, where: str = "") -> types.ModuleType:
    """The module `name` of the package, or a module from elsewhere by its dotted name.

    Raises:
      UserError: there is none.
    """
    if "." in name:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(where or name, f"no module {error.name!r}", "check the dotted name") from error
    if name not in names(package):
        raise UserError(where or package, f"no {name!r}{did_you_mean(name, names(package))}")
    return importlib.import_module(f"{package}.{name}")
