-- The inbox of github.com/idemq/idemq for PostgreSQL 15 or later. It can be executed again.
-- Times are microseconds since 1970, of the server's clock. What is zero or empty is NULL.

-- One row: the version of these tables, and an epoch that differs when they were made anew.
CREATE TABLE IF NOT EXISTS {meta} (
  id      smallint PRIMARY KEY CHECK (id = 1),
  version integer NOT NULL,
  epoch   text NOT NULL
);

-- A number for each prefix and group, and one for the issued tokens of a prefix (grp is NULL).
-- hash is of both, since names may be longer than an index takes. id is drawn from it: a
-- number that was forgotten is no other group's after that.
CREATE TABLE IF NOT EXISTS {groups} (
  id     integer PRIMARY KEY,
  hash   bytea NOT NULL UNIQUE,
  prefix bytea NOT NULL,
  grp    bytea
);

-- A row for each token of a group. state: 1 in progress, 2 released, 3 done, 4 dead,
-- 5 forgotten, 6 done before its handler ran (at most once).
-- A row whose expires has passed counts as absent; it is deleted some time after due,
-- which is expires in whole minutes and more, so that it seldom changes.
CREATE TABLE IF NOT EXISTS {records} (
  expires     bigint NOT NULL,
  at          bigint,
  renewed     bigint,
  lease       bigint,
  incarnation bigint,
  redrive     bigint,
  gid         integer NOT NULL,
  due         integer NOT NULL,
  attempt     integer NOT NULL,
  spent       integer,
  expiries    integer,
  fence       integer,
  version     smallint NOT NULL,
  state       smallint NOT NULL,
  token       bytea NOT NULL,
  claim       text NOT NULL,
  forgot_by   text,
  owner       bytea,
  fingerprint bytea,
  result      bytea,
  PRIMARY KEY (gid, token)
) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 10000,
  autovacuum_analyze_scale_factor = 0.01, autovacuum_analyze_threshold = 10000);
CREATE INDEX IF NOT EXISTS {name}records_due ON {records} (due);

-- Renewals of claims in progress: the records themselves stay as they are, so that a
-- handler's transaction of any isolation level can complete them.
CREATE TABLE IF NOT EXISTS {leases} (
  renewed bigint NOT NULL,
  lease   bigint NOT NULL,
  expires bigint NOT NULL,
  gid     integer NOT NULL,
  token   bytea NOT NULL,
  claim   text NOT NULL,
  PRIMARY KEY (gid, token)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- Tokens registered by Token or Issue, and those of them that Check has spent.
CREATE TABLE IF NOT EXISTS {issued} (
  expires    bigint NOT NULL,
  check_by   bigint NOT NULL,
  gid        integer NOT NULL,
  due        integer NOT NULL,
  version    smallint NOT NULL,
  token      bytea NOT NULL,
  checked_by text,
  PRIMARY KEY (gid, token)
) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 10000);
CREATE INDEX IF NOT EXISTS {name}issued_due ON {issued} (due);

-- The last number drawn for each instance name of a prefix.
CREATE TABLE IF NOT EXISTS {instances} (
  n      bigint NOT NULL,
  hash   bytea PRIMARY KEY,
  prefix bytea NOT NULL,
  name   bytea NOT NULL
);

INSERT INTO {meta} (id, version, epoch) VALUES (1, 1, gen_random_uuid()::text) ON CONFLICT (id) DO NOTHING;
UPDATE {meta} SET version = 1 WHERE version < 1;
