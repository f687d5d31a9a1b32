"""Every command that an installed package has, by its name."""

import importlib
import re

from mm01_jax.arguments import Command
from tests.house.checkout import ROOT

# "mm01-train" -> "mm01_jax.train.__main__", as setup.py declares it.
MODULES = dict(re.findall(r'"(mm01-\w+)=([\w.]+):main"', (ROOT / "setup.py").read_text(encoding="utf-8")))
COMMANDS: dict[str, Command] = {name: importlib.import_module(module).COMMAND for name, module in MODULES.items()}
MAINS = {name: importlib.import_module(module).main for name, module in MODULES.items()}
# A command as a whole, and with each of its tasks.
USES = [(name, task) for name, command in COMMANDS.items() for task in (None, *command.tasks)]
