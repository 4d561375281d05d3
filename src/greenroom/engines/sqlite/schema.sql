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

-- Queues from which nobody claims.
create table paused (
    queue    text    primary key,
    since_ms integer not null
) without rowid;
