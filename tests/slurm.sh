#!/usr/bin/env bash
# A real Slurm of two nodes on this machine, for the tests: slurmctld and two slurmd, with a munged of their own.
#   tests/slurm.sh start FOLDER        everything it writes lies there; export SLURM_CONF=FOLDER/slurm.conf
#   tests/slurm.sh stop FOLDER
#   tests/slurm.sh node FOLDER n2      starts one slurmd again
# A node is lost after 40 s without a word (SlurmdTimeout): a busy machine's is silent for some of that.
# A requeued job waits here for 15 s (cred_expire), not for Slurm's two minutes: sooner, a slurmd would still refuse it.
# Needs Debian's packages slurm-wlm and munge, and root, since slurmd starts tasks as the user who submitted them.
set -euo pipefail
verb=$1 folder=$(realpath "$2")

write_conf() {
    cat >"$folder/slurm.conf" <<CONF
ClusterName=swirl
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$1
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=15
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=40
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmdSpoolDir=$folder/spool-%n
StateSaveLocation=$folder/state
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n.log
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
KillWait=5
SlurmdParameters=config_overrides
NodeName=n[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[$(($1 + 1))-$(($1 + 2))] CPUs=4 RealMemory=4000
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
CONF
}

start_munge() {
    mkdir -m 711 "$folder/munge"
    dd if=/dev/urandom of="$folder/munge/key" bs=32 count=1 status=none
    chmod 600 "$folder/munge/key"
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
        --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
}

end() { # PID_FILE
    [ -f "$1" ] || return 0
    local pid
    pid=$(cat "$1") # the file goes with the process
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 50); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -9 "$pid"
}

export SLURM_CONF=$folder/slurm.conf
case $verb in
start)
    chmod 755 "$folder"
    mkdir "$folder"/{state,spool-n1,spool-n2}
    write_conf $((20000 + $$ % 20000))
    start_munge
    slurmctld
    slurmd -N n1
    slurmd -N n2
    for _ in $(seq 100); do
        [ "$(sinfo --noheader --states=idle --format=%D 2>/dev/null)" = 2 ] && exit 0
        sleep 0.2
    done
    echo "tests/slurm.sh: no two idle nodes after 20 s: see the logs in $folder" >&2
    exit 1
    ;;
stop)
    for service in n1 n2 slurmctld munge/; do
        end "$folder/${service%/}$([ "${service: -1}" = / ] && echo /pid || echo .pid)"
    done
    ;;
node) slurmd -N "$3" ;;
esac
