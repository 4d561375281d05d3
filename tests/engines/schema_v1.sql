-- A queue file of version 1, as it was made before there was another one, with one message in each state. Never changed.
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

pragma application_id = 1198681714;
pragma user_version = 1;

insert into owner (id, name, pid, slot, started_ms) values (1, 'host:4194305', 4194305, 0, 1700000000000);
insert into message (id, queue, priority, state, due_ms, body) values
    ('ready', 'default', 0, 2, null, x'7265616479'),
    ('delayed', 'default', 0, 3, 4000000000000, x'64656c61796564');
insert into message (id, queue, priority, state, lease, attempt, history, body) values
    ('claimed', 'default', 0, 4, 2305844108725321729, 2,
     '[{"at_ms":1700000000000,"attempt":1,"type":"ValueError","message":"no","traceback":"Traceback"}]', x'636c61696d6564');
insert into dead (id, queue, attempt, crashes, died_ms, error_type, error_message, body) values
    ('dead', 'default', 1, 0, 4000000000000, 'ValueError', 'no', x'64656164');
