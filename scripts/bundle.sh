#!/bin/sh
# SPDX-License-Identifier: MIT
# A directory that runs on another x86-64 Linux of the same or a newer C library with nothing installed: the program, its libraries
# beside it, an MPI that starts ranks on that machine (bdpo-mpirun, openmpi/), the notices of what is in it (licenses/), and what tests and
# measures it on a CUDA device. CUDA's own libraries are left out: they are looked for there. So is a cluster's MPI: the program takes the
# library of the launcher that started it (src/dist/comm_load.c).
# usage: bundle.sh BUNDLE_PARTS OUT      (make bundle)
#        bundle.sh --pack OUT            OUT.tar.xz
set -eu
if [ "$1" = --pack ]; then
    out=$2
    tar -C "$(dirname "$out")" -cJf "$out.tar.xz" "$(basename "$out")"
    bytes=$(wc -c <"$out.tar.xz")
    echo "$out.tar.xz: $((bytes / 1024)) KiB"
    [ "$bytes" -le $((40 * 1024 * 1024)) ] || { echo "error: more than 40 MiB" >&2; exit 1; }
    exit 0
fi

parts=$1 out=$2
from=$(mktemp) # what was copied from the system
trap 'rm -f "$from" "$from.owners"' EXIT
take() { # take FOLDER FILE...: copies without debugging symbols
    folder=$out/$1
    shift
    mkdir -p "$folder"
    for file in "$@"; do
        cp -L "$file" "$folder/"
        case $file in
        *.txt | *.py) ;;
        *) strip --strip-unneeded "$folder/$(basename "$file")" 2>/dev/null || true ;;
        esac
        readlink -f "$file" >>"$from"
    done
}
# the C library, its loader and what belongs to it come with the machine
libraries() { # libraries FILE...: those that the files are linked with
    ldd "$@" | awk '$3 ~ /^\// { print $3 }' | sort -u | grep -Ev '/(libc|libm|libdl|librt|libpthread|libresolv|ld-linux[^/]*)\.so'
}

rm -rf "$out"
mkdir -p "$out/lib" "$out/test" "$out/licenses"
install -m 755 -s "$parts/bdpo-train" "$out/bdpo-train"
for module in bdpo-openmpi.so bdpo-mpich.so; do
    if [ -e "$parts/$module" ]; then install -m 644 -s "$parts/$module" "$out/lib/"; fi
done
for program in device_ops bench; do
    if [ -e "$parts/$program" ]; then install -m 755 -s "$parts/$program" "$out/test/"; fi
done
# shellcheck disable=SC2046 # names of libraries hold no blanks
take lib $(libraries "$parts/bdpo-train" $(find "$parts" -name bench -o -name device_ops))

# Open MPI's launcher, and of its plug-ins those for ranks of one machine
if ! command -v ompi_info >/dev/null 2>&1 || [ ! -e "$parts/bdpo-openmpi.so" ]; then
    echo "error: a bundle has Open MPI in it; install version 4 of it (Debian: openmpi-bin, libopenmpi-dev), or name its compiler driver: make bundle MPICC_OPENMPI=mpicc" >&2
    exit 1
fi
where() { # where DIRECTORY: where Open MPI has it
    ompi_info --parsable --path "$1" | sed -n "s/^path:$1://p" | head -n 1
}
plugins=$(where pkglibdir)
chosen=
for plugin in allocator_basic allocator_bucket bml_r2 btl_self btl_tcp btl_vader coll_basic coll_inter coll_libnbc coll_self coll_sync coll_tuned \
    errmgr_default_app errmgr_default_hnp ess_hnp ess_pmi filem_raw grpcomm_direct iof_hnp odls_default oob_tcp plm_isolated pmix_ext3x pml_ob1 \
    reachable_weighted regx_fwd regx_naive regx_reverse rmaps_ppr rmaps_rank_file rmaps_round_robin rmaps_seq rml_oob routed_direct routed_radix \
    rtc_hwloc schizo_ompi schizo_orte shmem_mmap shmem_posix state_app state_hnp; do
    chosen="$chosen $plugins/mca_$plugin.so"
done
orterun=$(where bindir)/orterun
# shellcheck disable=SC2086 # neither do those of plug-ins
take openmpi/lib/openmpi $chosen
take openmpi/bin "$orterun"
# the plug-in that the ranks and mpirun speak by is linked with PMIx, which has plug-ins of its own beside it
# shellcheck disable=SC2046,SC2086
take openmpi/lib $(libraries "$orterun" $chosen)
pmix=$(dirname "$(readlink -f "$(libraries "$plugins/mca_pmix_ext3x.so" | grep '/libpmix\.')")")
take openmpi/lib/pmix "$pmix"/pmix/*.so
take openmpi/share "$(where pkgdatadir)"/help-*.txt "$pmix"/../share/pmix/help-*.txt
install -m 755 scripts/bdpo-mpirun.sh "$out/bdpo-mpirun"

cp -r test/goldens "$out/test/"
cp test/golden_test.py test/cuda_ranks_test.py test/mpi_test.py test/tiny_job.py scripts/compare_rows.py scripts/mpi_launch.py scripts/demo_data.py \
    scripts/bench_steps.py scripts/bench_common.py scripts/bench_data.py "$out/test/"
cp scripts/test-cuda.sh "$out/"

cp LICENSE "$out/licenses/bdpo-train"
for notice in build/cudnn/nvidia_cudnn_frontend-*.dist-info/licenses/*; do # compiled in, where it is there
    if [ -e "$notice" ]; then cp "$notice" "$out/licenses/cudnn-frontend-$(basename "$notice")"; fi
done
# a package may have its file without /usr
sed 'p; s|^/usr||' "$from" | xargs dpkg -S 2>/dev/null >"$from.owners" || true
awk 'NR == FNR { owner[$2] = $1; next }
    { short = $1; sub(/^\/usr/, "", short); name = $1 in owner ? owner[$1] : owner[short]; sub(/:.*/, "", name)
      print name == "" ? "unknown " $1 : name }' "$from.owners" "$from" | sort -u | while read -r package file; do
    if [ "$package" = unknown ]; then
        echo "warning: $file is no package's: add its copyright notice to $out/licenses" >&2
    else
        cp "/usr/share/doc/$package/copyright" "$out/licenses/$package"
    fi
done

if ! env -u LD_LIBRARY_PATH "$out/bdpo-train" --version >/dev/null; then
    echo "error: the bundle's program does not start" >&2
    exit 1
fi
