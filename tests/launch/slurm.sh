#!/bin/bash
# A SLURM cluster of this one host, without systemd and without cgroups, for tests.
#   slurm.sh start DIR    starts munged, slurmctld and slurmd; all their files are under DIR
#   slurm.sh stop DIR     ends them
#   slurm.sh install      gets the packages (Debian, Ubuntu)
# Clients find it by SLURM_CONF=DIR/slurm.conf. Needs root, as jobs are started for their users.
set -eu
PATH=$PATH:/usr/sbin:/sbin
host=$(hostname -s)

install() {
  command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null && return
  # No daemon of the distribution is to start.
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y slurm-wlm munge
  rm -f /usr/sbin/policy-rc.d
}

port() { # one that is free
  python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

start() {
  dir=$(realpath "$1")
  mkdir -p "$dir/state" "$dir/spool"
  head -c 1024 /dev/urandom >"$dir/munge.key"
  chmod 600 "$dir/munge.key"
  # A job that is queued again waits for cred_expire seconds. CPUs are more than there may be, and
  # shared: tests run little.
  cat >"$dir/slurm.conf" <<EOF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(port)
SlurmdPort=$(port)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=6
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
SlurmdParameters=config_overrides
KillWait=3
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
EOF
  munged --force --socket="$dir/munge.socket" --key-file="$dir/munge.key" \
    --pid-file="$dir/munged.pid" --log-file="$dir/munged.log" --seed-file="$dir/munge.seed"
  slurmctld -f "$dir/slurm.conf"
  slurmd -f "$dir/slurm.conf" -N "$host"
  for _ in $(seq 100); do
    [ "$(SLURM_CONF=$dir/slurm.conf sinfo -h -o %T 2>/dev/null)" = idle ] && return
    sleep 0.2
  done
  echo "slurm.sh: the node did not get idle; see $dir/*.log" >&2
  stop "$dir"
  return 1
}

stop() {
  for daemon in slurmd slurmctld munged; do
    file=$1/$daemon.pid
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
  done
}

"$@"
