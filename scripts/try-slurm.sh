#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# A Slurm of one node on this machine, by hand, and the scripts of configs/slurm on it: requeue after a signal and at the end of the time,
# an array, scancel. About 5 minutes, most of it Slurm's delay before a requeued job starts. As root, with Debian's slurmctld, slurmd and munge
# (apt-get install --no-install-recommends slurmctld slurmd slurm-client munge). Everything is in a temporary directory; only what is started here is ended.
set -u
cd "$(dirname "$0")/.." || exit 1
top=$PWD
BDPO_TRAIN=${BDPO_TRAIN:-$top/build/bdpo-train}
export BDPO_TRAIN
for tool in slurmctld slurmd sbatch munged; do
    command -v $tool >/dev/null || { echo "skipped: $tool is not there"; exit 77; }
done
dir=$(mktemp -d /tmp/bdpo-slurm-XXXXXX)
passed=0 failed=0
check() { # check WHAT COMMAND...
    if "${@:2}"; then
        passed=$((passed + 1)) && echo "ok   $1"
    else
        failed=$((failed + 1)) && echo "FAIL $1"
    fi
}
stop() { # jobs first: without their daemons they would stay for ever
    if [ -n "${SLURM_CONF:-}" ]; then
        scancel -s KILL --user "$(id -un)" 2>/dev/null
        scancel --user "$(id -un)" 2>/dev/null
        for _ in $(seq 30); do
            [ -n "$(squeue -h 2>/dev/null)" ] || break
            sleep 1
        done
    fi
    for name in slurmd slurmctld munged; do
        [ ! -s "$dir/$name.pid" ] || kill "$(cat "$dir/$name.pid")" 2>/dev/null
    done
    sleep 1
    rm -rf "$dir"
}
trap stop EXIT

mkdir "$dir/state" "$dir/spool"
chmod 755 "$dir"
head -c 1024 /dev/urandom >"$dir/munge.key"
chmod 600 "$dir/munge.key"
munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" --log-file="$dir/munged.log" \
    --seed-file="$dir/munged.seed" || exit 1
host=$(hostname -s)
cat >"$dir/slurm.conf" <<END
ClusterName=try
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
KillWait=10
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF=$dir/slurm.conf
slurmctld -f "$SLURM_CONF" && slurmd -f "$SLURM_CONF" || exit 1
wait_for() { # wait_for SECONDS COMMAND...
    for _ in $(seq "$1"); do
        if "${@:2}"; then return 0; fi
        sleep 1
    done
    return 1
}
idle() { sinfo -h -o %T 2>/dev/null | grep -q idle; }
check "a node is up" wait_for 20 idle

# a job of some seconds, and what it gives when it is left alone
python3 - "$dir/job" <<'END'
import os, sys
sys.path.insert(0, "test")
import tiny_job as t
root = sys.argv[1]
os.makedirs(root)
t.make_root(root, train=40)
sections = {"sft": {"epochs": 50}, "preference": {"epochs": 4000, "learning_rate": 1e-4}, "checkpoint": {"every": 2000}}
t.write_json(f"{root}/run.json", t.make_config(root, **sections))
sections = {"sft": None, "preference": {"epochs": 1500, "learning_rate": 1e-4}, "dist": {"deterministic": True}, "memory": {"micro_batch_tokens": 64}}
t.write_json(f"{root}/ranks.json", t.make_config(root, **sections))
t.write_json(f"{root}/sweep.json", t.make_config(root, model={"path": f"{root}/alone/sft"}, sft=None, preference={"epochs": 20}, output=f"{root}/unused",
                                                 cache_dir=f"{root}/sweep-cache"))
t.write_json(f"{root}/grid.json", {"config": "sweep.json", "output": "runs/sweep", "grid": {"preference.lambda": [0.2, 0.5, 0.8]}})
END
cd "$dir/job" || exit 1
"$BDPO_TRAIN" --config run.json --set output=alone >alone.log 2>&1
check "the job alone" test -d alone/model
state() { python3 -c 'import json,sys; s=json.load(open(sys.argv[1])); print(s["state"], s["exit_code"])' "$1/status.json" 2>/dev/null; }
field() { squeue -h -j "$1" -o "$2" 2>/dev/null; }
training() { [ -s "$1/metrics.jsonl" ] && [ "$(wc -l <"$1/metrics.jsonl")" -gt 2000 ]; }
submit() { sbatch --parsable --cpus-per-task=1 "$@"; }
is() { [ "$(state "$1")" = "$2" ]; }
gone() { [ -z "$(field "$1" %i)" ]; }
pending() { [ "$(field "$1" %T)" = PENDING ]; }

signal=$(submit --time=10 --job-name=signal "$top/configs/slurm/one-node.sbatch" run.json --set output=signal)
check "a job runs" wait_for 60 training signal
scancel -s USR1 "$signal"
check "scancel -s USR1: saved, 75 in status.json" wait_for 20 is signal "stopped 75"
check "and queued again" wait_for 10 pending "$signal"

limit=$(submit --time=2 --signal=USR1@100 --job-name=limit "$top/configs/slurm/one-node.sbatch" run.json --set output=limit --set preference.epochs=100000)
check "the end of the time: saved, 75 in status.json" wait_for 100 is limit "stopped 75"
check "and queued again" wait_for 10 pending "$limit"
scancel "$limit"

cancel=$(submit --time=10 --job-name=cancel "$top/configs/slurm/one-node.sbatch" run.json --set output=cancel)
check "another job runs" wait_for 60 training cancel
scancel "$cancel"
check "scancel (SIGTERM): saved, 75 in status.json" wait_for 20 is cancel "stopped 75"
check "and not queued again" test -z "$(sleep 2; field "$cancel" %T | grep -v COMPLETING)"

# two processes, given out by srun; again the bytes of one that is left alone
"$BDPO_TRAIN" --config ranks.json --set output=one >one.log 2>&1
check "one process alone" test -d one/model
ranks=$(sbatch --parsable --nodes=1 --ntasks-per-node=2 --cpus-per-task=1 --time=10 --job-name=ranks "$top/configs/slurm/nodes.sbatch" ranks.json --set output=ranks)
check "a job of two processes runs" wait_for 100 training ranks
scancel -s USR1 "$ranks"
check "scancel -s USR1 to two processes: saved, 75 in status.json" wait_for 20 is ranks "stopped 75"
check "and queued again" wait_for 10 pending "$ranks"
dead=$(sbatch --parsable --nodes=1 --ntasks-per-node=2 --cpus-per-task=1 --time=10 --job-name=dead "$top/configs/slurm/nodes.sbatch" ranks.json --set output=dead)
check "another job of two processes runs" wait_for 100 training dead
pkill_one() { # of the processes of this run the one that is not rank 0
    local zero
    zero=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["pid"])' "$1/status.json")
    pgrep -f -- "--config ranks.json --set output=$1\$" | while read -r pid; do
        if [ "$pid" != "$zero" ] && [ "$(readlink "/proc/$pid/exe")" = "$(readlink -f "$BDPO_TRAIN")" ]; then kill -KILL "$pid"; fi
    done
}
pkill_one dead
check "one of two processes is killed: 76 in status.json" wait_for 5 is dead "failed 76"
check "and srun ends the other" wait_for 20 gone "$dead"

export BDPO_SWEEP="$top/scripts/sweep.sh"
first=$(submit --array=0 "$top/configs/slurm/sweep.sbatch" grid.json)
array=$(submit --dependency=afterany:"$first" --array=1-2%2 "$top/configs/slurm/sweep.sbatch" grid.json)
check "an array ends" wait_for 240 gone "$array"
for value in 0.2 0.5 0.8; do
    check "an array: lambda $value is done" is "runs/sweep/lambda$value" "done 0"
done
check "the last element writes the table" test "$(grep -c ,done,0, runs/sweep/sweep.csv)" -eq 3
check "the reference pass was made once" test "$(grep -l '0 from the cache' runs/sweep/logs/*.log | wc -l)" -eq 1

check "the requeued job ends" wait_for 240 is signal "done 0"
check "it was started twice" grep -q '^.* start 1 on' "signal-$signal.out"
check "so does that of two processes" wait_for 240 is ranks "done 0"
for name in metrics.jsonl model/model.safetensors; do
    check "two processes, requeued: $name is byte-equal to that of one alone" cmp -s "one/$name" "ranks/$name"
done
for name in metrics.jsonl sft/model.safetensors model/model.safetensors; do
    check "its $name is byte-equal to that of the job alone" cmp -s "alone/$name" "signal/$name"
done
[ "$failed" -eq 0 ] || cat ./*.out "$dir/slurmctld.log"
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
