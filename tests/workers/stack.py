"""Imported, this has imported the stack: what the process does from which `layouts.run_module` forks."""

from workers.layouts import import_stack

import_stack()
