#!/bin/sh
# SPDX-License-Identifier: MIT
# Run test programs and scripts, TEST_JOBS at a time (two, where there are two cores: they wait for disks and each other more than they compute),
# and sum their results.
# usage: BDPO_TRAIN=BINARY [LOG=FILE] [TEST_JOBS=N] [TEST_TIMEOUT=SECONDS] [TORCH_PYTHON=PYTHON] run-tests.sh TEST...
#        run-tests.sh --one DIR N TEST      what it starts for each: counts, output and reasons of skips to DIR/N.*
#   a program (build/.../t_NAME): cmocka's TAP output is counted; what is planned and never reported counts as failed
#   a script (*.sh, *.py): its last line is "N passed, N failed, N skipped"; exit code 77 alone is one skip
# The output of what fails is shown, everything is in the log. The last line is "N passed, N failed, N skipped".
set -u
LC_ALL=C
export LC_ALL

log=${LOG:-build/test.log}
limit=${TEST_TIMEOUT:-300}
torch_python=${TORCH_PYTHON:-python3}
BDPO_TRAIN=${BDPO_TRAIN:-$PWD/build/bdpo-train}
export BDPO_TRAIN
ASAN_OPTIONS=${ASAN_OPTIONS:-print_legend=0}
UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}
# Tests beside each other share cores: a thread that waits for its team soon sleeps.
GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-500}
export ASAN_OPTIONS UBSAN_OPTIONS GOMP_SPINCOUNT

# Prints "passed failed skipped" of a TAP output; the reason of each skip goes to the file $reasons.
count_tap() {
    awk -v reasons="$reasons" -v test="$1" '
        /^1\.\.[0-9]+$/ { planned += substr($0, 4) + 0; said = ""; next }
        /^ok [0-9]+/ { ok++; said = ""; next }
        /^not ok [0-9]+ # SKIP/ {
            skip++
            name = $0; sub(/^not ok [0-9]+ # SKIP ?/, "", name)
            print test ": " name ": " (said == "" ? "no reason printed" : said) >>reasons
            said = ""; next
        }
        /^not ok [0-9]+/ { bad++; said = ""; next }
        /^#/ || /^[ \t]*$/ { next }
        { said = $0 }
        END {
            if (planned > ok + bad + skip) bad = planned - ok - skip
            if (planned == 0) bad++
            print ok + 0, bad + 0, skip + 0
        }' "$out"
}

# The same for a script, from its last line; the reasons are its lines that begin with "skip".
count_script() {
    if tail -n 1 "$out" | grep -Eq '^[0-9]+ passed, [0-9]+ failed(, [0-9]+ skipped)?$'; then
        tail -n 1 "$out" | awk '{ print $1, $3, $5 + 0 }'
        grep -i '^skip' "$out" | sed "s|^|$1: |" >>"$reasons"
    elif [ "$2" -eq 77 ]; then
        echo "0 0 1"
        echo "$1: $(tail -n 1 "$out")" >>"$reasons"
    elif [ "$2" -eq 0 ]; then
        echo "1 0 0"
    else
        echo "0 1 0"
    fi
}

has_torch() {
    "$torch_python" -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("torch") and u.find_spec("transformers")))' 2>/dev/null
}

has_tokenizers() {
    "$torch_python" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("tokenizers"))' 2>/dev/null
}

run_one() {
    case $1 in
    */compare_torch.py)
        if has_torch; then
            timeout -k 10 "$limit" "$torch_python" "$1" --quick
        else
            echo "skipped: $torch_python has no torch and transformers (make torch, or TORCH_PYTHON=...)"
            return 77
        fi
        ;;
    */check_*.py)
        if has_tokenizers; then
            timeout -k 10 "$limit" "$torch_python" "$1"
        else
            echo "skipped: $torch_python has no tokenizers (make torch, or TORCH_PYTHON=...)"
            return 77
        fi
        ;;
    *.py) timeout -k 10 "$limit" python3 "$1" ;;
    *.sh) timeout -k 10 "$limit" sh "$1" ;;
    *) CMOCKA_MESSAGE_OUTPUT=TAP timeout -k 10 "$limit" "$1" ;;
    esac
}

report_one() { # report_one DIR N TEST
    out=$1/$2.out reasons=$1/$2.reasons test=$3
    name=$(basename "$test")
    start=$(date +%s)
    rc=0
    run_one "$test" >"$out" 2>&1 </dev/null || rc=$?
    seconds=$(($(date +%s) - start))
    case $test in
    *.sh | *.py) counts=$(count_script "$name" "$rc") ;;
    *) counts=$(count_tap "$name") ;;
    esac
    read -r p f s <<EOF
$counts
EOF
    note=
    case $rc in
    0 | 77) ;;
    124 | 137) note=" (stopped after $limit s)" ;;
    *) [ "$f" -gt 0 ] || note=" (exit code $rc)" ;;
    esac
    if [ -n "$note" ] && [ "$f" -eq 0 ]; then f=1; fi
    if [ "$f" -gt 0 ]; then
        text="FAILED $name: $p passed, $f failed, $s skipped$note
$(grep -v -e '^ok [0-9]' -e '^[= ]*>*0x[0-9a-f]*:' "$out" | tail -n 60 | sed 's/^/    /')"
    else
        text=$(printf '%-28s %4d passed, %d skipped, %d s' "$name" "$p" "$s" "$seconds")
    fi
    echo "=== $name: $p passed, $f failed, $s skipped, $seconds s, exit code $rc" >"$1/$2.title"
    echo "$p $f $s" >"$1/$2.counts"
    printf '%s\n' "$text"
}

if [ "${1:-}" = --one ]; then
    report_one "$2" "$3" "$4"
    exit 0
fi

mkdir -p "$(dirname "$log")"
all=$(mktemp -d)
trap 'rm -rf "$all"' EXIT
trap 'exit 130' INT TERM
jobs=${TEST_JOBS:-$(($(nproc) > 1 ? 2 : 1))}
n=0
: >"$all/ranks"
: >"$all/others"
for test in "$@"; do
    n=$((n + 1))
    case $test in
    */mpi_*.py | */cuda_ranks_test.py) list=ranks ;; # one at a time: ranks that wait spin
    *) list=others ;;
    esac
    printf '%s\n%s\n%s\n' "$all" "$n" "$test" >>"$all/$list"
done
run_list() { # run_list NAME JOBS
    exec xargs -r -d '\n' -P "$2" -n 3 -a "$all/$1" sh "$0" --one
}
if [ "$jobs" -gt 1 ] && [ -s "$all/ranks" ]; then
    run_list others $((jobs - 1)) &
    others=$!
    (run_list ranks 1)
    kill -USR1 "$others" 2>/dev/null # xargs: one more at a time
    wait "$others"
else
    (run_list others "$jobs")
    (run_list ranks 1)
fi
passed=0 failed=0 skipped=0
: >"$log"
for i in $(seq $#); do
    if [ -f "$all/$i.counts" ]; then
        read -r p f s <"$all/$i.counts"
        cat "$all/$i.title" "$all/$i.out" >>"$log"
    else
        p=0 f=1 s=0
        echo "=== test $i did not end" | tee -a "$log"
    fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
if [ "$skipped" -gt 0 ]; then
    echo "skipped:"
    for i in $(seq $#); do
        [ ! -f "$all/$i.reasons" ] || sed 's/^/    /' "$all/$i.reasons"
    done
fi
[ "$failed" -eq 0 ] || echo "full output: $log"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
