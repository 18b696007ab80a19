"""Runs a script as on a disk with little room: python limit_file_size.py KIB SCRIPT [ARGUMENT]...

No file may grow beyond KIB KiB; a write beyond it fails as one on a full disk does.
"""

import resource
import runpy
import sys

limit = int(sys.argv[1]) * 1024
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
