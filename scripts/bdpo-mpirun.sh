#!/bin/sh
# SPDX-License-Identifier: MIT
# The mpirun of a bundle (Open MPI's, with its options): starts ranks on this machine, wherever the bundle lies, as root too.
# usage: bdpo-mpirun -np RANKS ./bdpo-train --config run.json
set -eu
mpi=$(dirname "$(readlink -f "$0")")/openmpi
export OPAL_PREFIX="$mpi" OPAL_BINDIR="$mpi/bin" OPAL_LIBDIR="$mpi/lib" OPAL_PKGLIBDIR="$mpi/lib/openmpi" OPAL_PKGDATADIR="$mpi/share" OPAL_SYSCONFDIR="$mpi/etc"
export PMIX_PREFIX="$mpi" PMIX_LIBDIR="$mpi/lib" PMIX_PKGLIBDIR="$mpi/lib/pmix" PMIX_PKGDATADIR="$mpi/share" PMIX_SYSCONFDIR="$mpi/etc"
# the machine's own plug-ins may be of another version
export HWLOC_PLUGINS_PATH="$mpi/lib/hwloc"
export LD_LIBRARY_PATH="$mpi/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# what one machine needs, whatever a site's settings for its own MPI say
export OMPI_MCA_plm=isolated OMPI_MCA_oob_tcp_if_include=lo OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader,tcp
# many containers forbid a process to read another's memory, on which Open MPI relies; without it messages take a fifth longer
export OMPI_MCA_btl_vader_single_copy_mechanism="${OMPI_MCA_btl_vader_single_copy_mechanism:-none}"
# a rank has a device, not a core
export OMPI_MCA_hwloc_base_binding_policy="${OMPI_MCA_hwloc_base_binding_policy:-none}" OMPI_MCA_rmaps_base_oversubscribe="${OMPI_MCA_rmaps_base_oversubscribe:-1}"
# Open MPI crashes where neither this nor /etc/passwd says where home is
export HOME="${HOME:-/}"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
exec "$mpi/bin/orterun" "$@"
