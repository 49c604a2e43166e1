# SPDX-License-Identifier: MIT
"""How the program is started on several ranks of this machine. Standard library only."""
import os
import shutil
import subprocess


def launcher(binary):
    """mpirun's words before the number of ranks, and ""; or None, and the reason why there is none."""
    beside = os.path.join(os.path.dirname(os.path.abspath(binary)), "bdpo-mpirun")  # in a bundle
    mpirun = os.environ.get("MPIRUN", beside if os.path.exists(beside) else "mpirun")
    if not shutil.which(mpirun):
        return None, f"there is no {mpirun} here"
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    built = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    theirs, ours = "Open MPI" if "Open MPI" in version else "MPICH", [name for name in ("Open MPI", "MPICH") if name in built]
    if not ours:
        return None, "the program was built without MPI"
    if theirs not in ours:
        return None, f"the program was built with {ours[0]}, and {mpirun} is another's"
    # as root, and with more ranks than cores
    return [mpirun] + (["--allow-run-as-root", "--oversubscribe"] if theirs == "Open MPI" else []), ""
