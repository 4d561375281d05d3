-- Version 1. One row a message that is not dead; `state` says where it is in its life:
--   2 ready, 3 delayed until due_ms, 4 claimed under `lease`.
-- `seq` is the order of arrival. It may be used again after its row is gone, so a settlement is fenced by (seq, lease):
-- a lease is an owner's number and the number of its trip, and neither is ever used twice.
-- States, and leases held or free, are stored in the same number of bytes: a claim then rewrites a row in place.
create table message (
    seq      integer primary key,
    id       text    not null,
    queue    text    not null,
    priority integer not null,
    state    integer not null,
    lease    integer not null default 4611686018427387904,
    due_ms   integer,
    attempt  integer not null default 0,
    crashes  integer not null default 0,
    history  text,
    body     blob    not null
);
create index message_ready   on message (queue, priority, seq) where state = 2;
create index message_delayed on message (due_ms) where state = 3;
create index message_claimed on message (lease) where state = 4;

create table dead (
    seq             integer primary key,
    id              text    not null,
    queue           text    not null,
    attempt         integer not null,
    crashes         integer not null,
    history         text,
    died_ms         integer not null,
    error_type      text,
    error_message   text,
    error_traceback text,
    body            blob    not null
);
create index dead_by_queue on dead (queue, died_ms);

-- Who claims messages. An owner is alive while it holds the lock on byte `slot` of the lock file.
create table owner (
    id         integer primary key autoincrement,
    name       text    not null,
    pid        integer not null,
    slot       integer not null unique,
    started_ms integer not null
);

-- Version 2 adds all that follows. A file of version 1 gets it by the same statements.
-- They may run more than once on a file (see `migrations`), so each says `if not exists`.

-- Queues from which nobody claims.
create table if not exists paused (
    queue    text    primary key,
    since_ms integer not null
) without rowid;

-- To look a dead letter up, and to go through all of them by their age.
create index if not exists dead_by_id   on dead (id);
create index if not exists dead_by_time on dead (died_ms);

-- The store. What has expired is not seen any more, and is deleted later, by anybody.
-- Values, counters and the times of grants. A key has parts: one, 0, if it is no list. Keys that begin with a time keep
-- what is written together on few pages: a result then costs 3 us, with random keys 15.
create table if not exists value (
    key    text    not null,
    part   integer not null,
    value  blob    not null,
    end_ms integer,
    primary key (key, part)
) without rowid;
create index if not exists value_ending on value (end_ms) where end_ms is not null;

-- Slots that are taken, until they are given back or end.
create table if not exists slot (
    fence  integer primary key autoincrement,
    key    text    not null,
    holder text    not null,
    end_ms integer not null,
    unique (key, holder)
);
create index if not exists slot_ending on slot (end_ms);

-- Who stands in line for a slot: messages that are delayed until due_ms = 2^62, and what they ask for.
create table if not exists parked (
    place  integer primary key,
    seq    integer not null unique,
    key    text    not null,
    holder text    not null,
    slots  integer not null,
    ttl_ms integer not null
);
create index if not exists parked_by_key on parked (key, place);

-- Sets. `plan` is what their completion does. One that was dropped has no key and waits for the purge.
create table if not exists gathering (
    id      integer primary key autoincrement,
    key     text    unique,
    total   integer not null default 0,
    missing integer not null default 0,
    failed  integer not null default 0,
    plan    blob,
    end_ms  integer
);
create index if not exists gathering_ending on gathering (end_ms) where end_ms is not null;

-- A member stays when it is removed, as done (1) or failed (2): so nobody can add or remove it a second time.
create table if not exists member (
    gathering integer not null,
    name      text    not null,
    outcome   integer not null default 0,
    primary key (gathering, name)
) without rowid;
