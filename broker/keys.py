"""Every Redis key and channel of a yard, named once. Lua reads the same names from `lua_table()`.

A yard is one Redis database. Producers' lists and Celery's result keys are kombu's and Celery's own names;
everything of ours starts with `by:`.
"""

from __future__ import annotations

PREFIX = "by:"
PRIORITY_SEPARATOR = "\x06\x16"  # kombu's: list of queue q at priority n > 0 is q + separator + n
PRIORITIES = range(10)

SEQUENCE = "by:seq"  # counter: order of arrival
JOBS = "by:jobs"  # zset: created ms -> id
LEASES = "by:leases"  # zset: deadline ms -> id
EXPIRING = "by:expiring"  # zset: expires ms -> id
OUTBOX = "by:outbox"  # hash: "end:<id>", "deps:<id>", "array:<id>", "children" or "body:<chord key>" -> JSON
CHILD_ENDS = "by:childends"  # list: ids of children of arrays whose end is decided
DEAD = "by:dead"  # hash: number -> JSON of a message that could not be taken in, or an effect that failed
DEAD_SEQUENCE = "by:deadseq"  # counter
REAPER = "by:reaper"  # ms of the reaper's last look
NODES = "by:nodes"  # zset: last heartbeat ms -> node
CONTROLLER = "by:controller"  # the controller's lock
STAND_IN = "by:standin"  # the lock of the nodes that stand in for it
KEY_MARK = "by:keymark"  # tells whether a process has the yard's keys
KEY_STATE = "by:keystate"  # hash: "rotating" -> id of the key that is to be the current one; "retired:<id>" -> ms
KEY_HOLDERS = "by:keyholders"  # hash: a process that has the yard's keys -> JSON, see `keywatch.Holder`
CONFIG = "by:config"  # JSON of the yard's configuration
OVERFLOW = "by:overflow"  # hash: "<queue> <environment>" -> ms that a job is left to earlier environments
WEBHOOK = "by:webhook"  # hash: how far events were delivered, and what went wrong last
WEBHOOK_LOCK = "by:webhook:lock"  # the lock of the one that delivers
STORE = "by:store"  # the id of the yard's durable store
DEFINITIONS = "by:defs"  # hash: name of a job definition -> its last revision
DEFINITIONS_ACTIVE = "by:defs:active"  # hash: name -> its latest ACTIVE revision
DEFINITIONS_VERSION = "by:defs:version"  # changes whenever a definition does
EVENTS = "by:events"  # stream: changes of states, the newest 100,000 or so; e: "<id> <queue> <state> <reason>"
EVENTS_OFF = "by:events:off"  # there where the configuration wants no such stream
SCHEDULES = "by:schedules"  # set: names of schedules
SCHEDULES_DUE = "by:schedules:due"  # zset: ms when it is to fire next -> name; ENABLED ones only
POLICIES = "by:policies"  # hash: queue -> JSON of its fair share and its limit, as the claim reads them
HOLDS = "by:holds"  # hash: what running jobs hold: q:<queue> jobs, v:<queue> milli-vCPU, d:<definition> jobs
HOLDS_SINCE = "by:holds:since"  # hash: d:<definition> -> ms of its last job's claim
LIMITS = "by:limits"  # hash: name of a job definition -> how many of its jobs may run at once
GATES = "by:gates"  # counter: changes whenever something is free again that is counted beside nodes' resources
CONSUMABLES = "by:consumables"  # set: names of consumable resources
RESERVATIONS = "by:reservations"  # zset: since ms -> node that is kept for one job
GANG_RESERVED = "by:gangs:reserved"  # the gang that nodes are kept for
SPOT = "by:spot"  # set: compute environments of machines that may be taken away
GANG_QUEUES = "by:gangs"  # set: queues in which jobs of several nodes wait
BLOBS_UNTIL = (
    "by:blobs:until"  # zset: ms from which nobody may need it -> name of an object that does not stay for ever
)
BLOBS_MADE = "by:blobs:made"  # hash: name of such an object -> JSON of who made it, see shared/blobs.lua
BLOBS_PINNED = "by:blobs:pinned"  # hash: name of an object that a person keeps -> the same and more
BLOBS_GOING = "by:blobs:going"  # hash: name of an object that is being deleted -> ms since when
BLOBS_LOCK = "by:blobs:lock"  # the lock of the one that deletes
WAKE = "by:wake"  # channel: work for nodes; message = queue
DUTY = "by:duty"  # channel: work for the controller
CONTROL = "by:control"  # channel: "<node> <job id>" has something to be told; "* config": to all of them


def job(job_id: str) -> str:
    """Hash: the record of a job."""
    return f"by:job:{job_id}"


def cancelled(job_id: str) -> str:
    """String with expiry: a cancel of a job that has not been taken in yet."""
    return f"by:cancel:{job_id}"


def definition(reference: str) -> str:
    """Hash: one revision of a job definition, `name:revision`."""
    return f"by:def:{reference}"


def consumable(name: str) -> str:
    """Hash: a consumable resource: type, total, held, jobs that hold some."""
    return f"by:consumable:{name}"


def consumable_token(token: str) -> str:
    """String with expiry: the answer that a change of a consumable resource got, by `name:token`."""
    return f"by:consumable:token:{token}"


def schedule(name: str) -> str:
    """Hash: a schedule, its next time and what it sent last."""
    return f"by:schedule:{name}"


def dependants(job_id: str) -> str:
    """Zset: score -> id of the jobs that wait for this one to end."""
    return f"by:dependants:{job_id}"


def memo(name: str) -> str:
    """String with expiry, sealed: what a job made that may be reused, by the name of what it was."""
    return f"by:memo:{name}"


def states(queue: str) -> str:
    """Hash: state -> jobs of the queue in it; of SUCCEEDED and FAILED, how many ended so since the yard began."""
    return f"by:states:{queue}"


def head(queue: str) -> str:
    """Hash: the first job of a queue as the controller saw it last, and why nothing can start it."""
    return f"by:head:{queue}"


def scaling(environment: str) -> str:
    """String with expiry, JSON: what an autoscaler does about an environment, see `blocked.Scaling`."""
    return f"by:scaling:{environment}"


def log(job_id: str) -> str:
    """Stream: the live tail of a job's log."""
    return f"by:log:{job_id}"


def node(name: str) -> str:
    """Hash: a node's capacity, labels, last claim."""
    return f"by:node:{name}"


def node_jobs(name: str) -> str:
    """Set: ids of the jobs that a node holds."""
    return f"by:node:{name}:jobs"


def holders(name: str) -> str:
    """Zset with expiry: ms until when a node says that it has an object of the store in its near one -> node."""
    return f"by:blob:{name}:holders"


def flight(name: str) -> str:
    """String with expiry: the node that fetches an object from the durable store just now."""
    return f"by:blob:{name}:flight"


def result(job_id: str) -> str:
    """Celery's result key, and the channel that announces it."""
    return f"celery-task-meta-{job_id}"


def priority_list(queue: str, priority: int) -> str:
    """kombu's list of a queue at a priority."""
    return queue if priority == 0 else f"{queue}{PRIORITY_SEPARATOR}{priority}"


def priority_lists(queue: str) -> list[str]:
    """All ten lists that a stock producer may push to, most urgent first."""
    return [priority_list(queue, n) for n in PRIORITIES]


def lua_table() -> str:
    """The same names for the Lua functions: `K.leases`, `K.job(id)`, `K.heads(queue)` …"""
    plain = {name.lower(): value for name, value in globals().items() if name.isupper() and isinstance(value, str)}
    plain.pop("priority_separator")
    lines = [f"  {name} = '{value}'," for name, value in sorted(plain.items())]
    lines += [
        f"  {fn.__name__} = function(x) return '{fn('|').replace('|', chr(39) + ' .. x .. ' + chr(39))}' end,"
        for fn in (
            job,
            cancelled,
            consumable,
            consumable_token,
            dependants,
            definition,
            flight,
            head,
            holders,
            schedule,
            node,
            node_jobs,
            result,
            states,
        )
    ]
    # The ready index is touched by Lua alone.
    lines += [
        "  class = function(q, c) return 'by:q:' .. q .. ':c:' .. c end,  -- zset: score -> id",
        "  heads = function(q) return 'by:q:' .. q .. ':heads' end,       -- zset: score of its first job -> class",
        "  counts = function(q) return 'by:q:' .. q .. ':n' end,          -- hash: class -> jobs waiting",
        "  demands = function(q) return 'by:q:' .. q .. ':d' end,         -- hash: id -> demand, in coarse classes",
        "  shares = function(q) return 'by:q:' .. q .. ':shares' end,     -- zset: decayed use -> share",
        "  share_use = function(q) return 'by:q:' .. q .. ':use' end,     -- hash: share -> what it used",
        "  share_open = function(q) return 'by:q:' .. q .. ':open' end,   -- hash: active share -> open jobs",
        "  share_kin = function(q) return 'by:q:' .. q .. ':kin' end,     -- hash: prefix -> active shares that match",
        "  share_waits = function(q) return 'by:q:' .. q .. ':waits' end, -- hash: share -> jobs ready",
        "  resting = function(q) return 'by:q:' .. q .. ':resting' end,   -- zset: ms when it is forgotten -> share",
        "  news = function(q) return 'by:q:' .. q .. ':news' end,         -- changes when a lane has something new",
        "  delayed = function(q) return 'by:q:' .. q .. ':delayed' end,   -- zset: eta ms -> id",
        "  gangs = function(q) return 'by:q:' .. q .. ':gangs' end,       -- zset: score -> id, jobs of several nodes",
        "  blocked = function(q) return 'by:q:' .. q .. ':blocked' end,   -- set: ids that wait for other jobs",
        "  unspawned = function(q) return 'by:q:' .. q .. ':arrays' end,  -- hash: parent -> children still to come",
        "  list = function(q, n) if n == 0 then return q end return q .. '\\6\\22' .. n end,",
    ]
    return "local K = {\n" + "\n".join(lines) + "\n}\n"
