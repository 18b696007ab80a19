"""Slurm's reasons and states in words, and which of them never pass."""

from __future__ import annotations

import re
import signal as signals

#: Reasons with which a job waits for ever, unless somebody changes the job or the cluster.
_NEVER = re.compile(
    r"PartitionNodeLimit|PartitionTimeLimit|PartitionConfig|AccountNotAllowed|QOSNotAllowed|BadConstraints"
    r"|DependencyNeverSatisfied|InvalidAccount|InvalidQOS|DeadLine|JobHoldMaxRequeue|JobLaunchFailure|ReservationDeleted"
    r"|MaxMemPerLimit|.*PerJob(Limit)?|.*PerNode(Limit)?|(Assoc|QOS).*MaxWall.*|.*QOSMin.*|AssocMaxCpuMinutesPerJobLimit"
    r"|launch failed requeued held|job requeued in special exit state|FedJobLock.*"
)
_WAITS = {
    "AccountNotAllowed": "the account may not use the partition",
    "BadConstraints": "no node meets its constraints",
    "BeginTime": "held back until its earliest start",
    "DeadLine": "it cannot end before its deadline",
    "Dependency": "it waits for another job",
    "DependencyNeverSatisfied": "the job it depends on did not end as it should",
    "InvalidAccount": "its account is not valid",
    "InvalidQOS": "its qos is not valid",
    "JobHeldAdmin": "held by an administrator",
    "JobHeldUser": "held; `scontrol release` lets it go",
    "JobHoldMaxRequeue": "it was started again too often",
    "JobLaunchFailure": "it could not be launched",
    "launch failed requeued held": "it could not be launched",
    "Licenses": "it waits for a license",
    "MaxMemPerLimit": "it asks for more memory than a job may have",
    "PartitionConfig": "the partition has not what it asks for",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is not active",
    "PartitionNodeLimit": "it asks for more or fewer nodes than the partition gives",
    "PartitionTimeLimit": "its time limit is longer than the partition allows",
    "Priority": "jobs of higher priority come first",
    "QOSNotAllowed": "the qos may not be used there",
    "Reservation": "its reservation has not begun",
    "ReservationDeleted": "its reservation was deleted",
    "ReqNodeNotAvail": "nodes that it needs are not available now",
    "Resources": "the nodes are in use",
}
_ENDS = {
    "TIMEOUT": "its time limit was reached",
    "OUT_OF_MEMORY": "it used more memory than it was given",
    "PREEMPTED": "a job of higher priority took its place",
    "NODE_FAIL": "a node failed",
    "BOOT_FAIL": "its nodes did not boot",
    "LAUNCH_FAILED": "it could not be launched",
    "RECONFIG_FAIL": "its nodes could not be configured",
    "DEADLINE": "its deadline passed",
    "REVOKED": "another cluster of the federation runs it",
}
#: Reasons that say no more than the state does, or are left over from waiting.
_EMPTY = {"", "None", "NonZeroExitCode", "RaisedSignal", "TimeLimit", *_WAITS} - {"JobLaunchFailure"}


def hopeless(state: str, reason: str) -> bool:
    """Whether a waiting job can never start as things are."""
    return state == "SPECIAL_EXIT" or bool(_NEVER.fullmatch(reason.strip("()").split(",")[0]))


def words(state: str, reason: str) -> str:
    """Why it waits, or why it ended, for people; "" where there is nothing to say."""
    if state in _ENDS:
        return _ENDS[state]
    reason = reason.strip("()")
    if state not in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"):
        return "" if reason in _EMPTY else _WAITS.get(reason, reason)
    said = _WAITS.get(reason.split(",")[0])
    return f"{said} ({reason})" if said else reason


def signal_name(number: int) -> str:
    """``SIGSEGV``."""
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"
