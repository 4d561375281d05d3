-- Version 1. One row a message that is not dead; `state` says where it is in its life:
--   0 ready, 1 delayed until due_ms, 2 claimed by `owner` in its trip `claim`.
-- `seq` is the order of arrival. It may be used again after its row is gone, so a settlement is fenced by
-- (seq, owner, claim): owners are never numbered twice and count their trips.
create table message (
    seq      integer primary key,
    id       text    not null,
    queue    text    not null,
    priority integer not null,
    state    integer not null,
    due_ms   integer,
    owner    integer,
    claim    integer,
    attempt  integer not null default 0,
    crashes  integer not null default 0,
    history  text,
    body     blob    not null
);
create index message_ready   on message (queue, priority, seq) where state = 0;
create index message_delayed on message (due_ms) where state = 1;
create index message_claimed on message (owner) where state = 2;

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
