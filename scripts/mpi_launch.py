# SPDX-License-Identifier: MIT
"""How the program is started on several ranks of this machine. Standard library only."""
import os
import shutil
import subprocess

MPIRUN = os.environ.get("MPIRUN", "mpirun")


def launcher(binary):
    """mpirun's words before the number of ranks, and ""; or None, and the reason why there is none."""
    if not shutil.which(MPIRUN):
        return None, f"there is no {MPIRUN} here"
    version = subprocess.run([MPIRUN, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    built = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    ours = "Open MPI" if "Open MPI" in built else "MPICH" if "MPICH" in built else "none"
    if ours == "none":
        return None, "the program was built without MPI"
    if ("Open MPI" if "Open MPI" in version else "MPICH") != ours:
        return None, f"the program was built with {ours}, and {MPIRUN} is another's"
    # as root, and with more ranks than cores
    return [MPIRUN] + (["--allow-run-as-root", "--oversubscribe"] if ours == "Open MPI" else []), ""
