-- The inbox of github.com/idemq/idemq for SQLite 3.37 or later. It can be executed again.
-- Times are microseconds since 1970. What is zero or empty is NULL.

-- One row: the version of these tables, and an epoch that differs when they were made anew.
CREATE TABLE IF NOT EXISTS {meta} (
  id      INTEGER PRIMARY KEY CHECK (id = 1),
  version INTEGER NOT NULL,
  epoch   TEXT NOT NULL
) STRICT;

-- A number for each prefix and group, and one for the issued tokens of a prefix (grp is NULL).
-- id is drawn from hash: a number that was forgotten is no other group's after that.
CREATE TABLE IF NOT EXISTS {groups} (
  id     INTEGER PRIMARY KEY,
  hash   BLOB NOT NULL UNIQUE,
  prefix BLOB NOT NULL,
  grp    BLOB
) STRICT;

-- A row for each token of a group. state: 1 in progress, 2 released, 3 done, 4 dead,
-- 5 forgotten, 6 done before its handler ran (at most once).
-- A row whose expires has passed counts as absent; it is deleted some time after due,
-- which is expires in whole minutes and more, so that it seldom changes.
CREATE TABLE IF NOT EXISTS {records} (
  gid         INTEGER NOT NULL,
  token       BLOB NOT NULL,
  version     INTEGER NOT NULL,
  state       INTEGER NOT NULL,
  claim       TEXT NOT NULL,
  attempt     INTEGER NOT NULL,
  expires     INTEGER NOT NULL,
  due         INTEGER NOT NULL,
  at          INTEGER,
  renewed     INTEGER,
  lease       INTEGER,
  incarnation INTEGER,
  spent       INTEGER,
  expiries    INTEGER,
  redrive     INTEGER,
  fence       INTEGER,
  forgot_by   TEXT,
  owner       BLOB,
  fingerprint BLOB,
  result      BLOB,
  PRIMARY KEY (gid, token)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS {name}records_due ON {records} (due);

-- Renewals of claims in progress.
CREATE TABLE IF NOT EXISTS {leases} (
  gid     INTEGER NOT NULL,
  token   BLOB NOT NULL,
  claim   TEXT NOT NULL,
  renewed INTEGER NOT NULL,
  lease   INTEGER NOT NULL,
  expires INTEGER NOT NULL,
  PRIMARY KEY (gid, token)
) STRICT, WITHOUT ROWID;

-- Tokens registered by Token or Issue, and those of them that Check has spent.
CREATE TABLE IF NOT EXISTS {issued} (
  gid        INTEGER NOT NULL,
  token      BLOB NOT NULL,
  version    INTEGER NOT NULL,
  check_by   INTEGER NOT NULL,
  checked_by TEXT,
  expires    INTEGER NOT NULL,
  due        INTEGER NOT NULL,
  PRIMARY KEY (gid, token)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS {name}issued_due ON {issued} (due);

-- The last number drawn for each instance name of a prefix.
CREATE TABLE IF NOT EXISTS {instances} (
  hash   BLOB PRIMARY KEY,
  n      INTEGER NOT NULL,
  prefix BLOB NOT NULL,
  name   BLOB NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO {meta} (id, version, epoch) VALUES (1, 1, hex(randomblob(16))) ON CONFLICT (id) DO NOTHING;
UPDATE {meta} SET version = 1 WHERE version < 1;
