-- The inbox of github.com/idemq/idemq for MySQL 8 or later and MariaDB 10.11 or later.
-- It can be executed again.
-- Times are microseconds since 1970, of the server's clock. What is zero or empty is NULL.

-- One row: the version of these tables, and an epoch that differs when they were made anew.
CREATE TABLE IF NOT EXISTS {meta} (
  id      TINYINT NOT NULL PRIMARY KEY,
  version INT NOT NULL,
  epoch   VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL
) ENGINE = InnoDB;

-- A number for each prefix and group, and one for the issued tokens of a prefix (grp is NULL).
-- hash is of both, since names may be longer than an index takes. id is drawn from it: a
-- number that was forgotten is no other group's after that.
CREATE TABLE IF NOT EXISTS {groups} (
  id     INT NOT NULL PRIMARY KEY,
  hash   BINARY(32) NOT NULL UNIQUE,
  prefix BLOB NOT NULL,
  grp    BLOB
) ENGINE = InnoDB;

-- A row for each token of a group. state: 1 in progress, 2 released, 3 done, 4 dead,
-- 5 forgotten, 6 done before its handler ran (at most once).
-- A row whose expires has passed counts as absent; it is deleted some time after due,
-- which is expires in whole minutes and more, so that it seldom changes.
CREATE TABLE IF NOT EXISTS {records} (
  gid         INT NOT NULL,
  token       VARBINARY(255) NOT NULL,
  version     SMALLINT NOT NULL,
  state       SMALLINT NOT NULL,
  claim       VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  attempt     INT NOT NULL,
  expires     BIGINT NOT NULL,
  due         INT NOT NULL,
  at          BIGINT,
  renewed     BIGINT,
  lease       BIGINT,
  incarnation BIGINT,
  spent       INT,
  expiries    INT,
  redrive     BIGINT,
  fence       INT,
  forgot_by   VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin,
  owner       BLOB,
  fingerprint VARBINARY(64),
  result      LONGBLOB,
  PRIMARY KEY (gid, token),
  KEY {name}records_due (due)
) ENGINE = InnoDB;

-- Renewals of claims in progress: the records themselves stay as they are, so that a
-- handler's transaction of any isolation level can complete them.
CREATE TABLE IF NOT EXISTS {leases} (
  gid     INT NOT NULL,
  token   VARBINARY(255) NOT NULL,
  claim   VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  renewed BIGINT NOT NULL,
  lease   BIGINT NOT NULL,
  expires BIGINT NOT NULL,
  PRIMARY KEY (gid, token)
) ENGINE = InnoDB;

-- Tokens registered by Token or Issue, and those of them that Check has spent.
CREATE TABLE IF NOT EXISTS {issued} (
  gid        INT NOT NULL,
  token      VARBINARY(255) NOT NULL,
  version    SMALLINT NOT NULL,
  check_by   BIGINT NOT NULL,
  checked_by VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin,
  expires    BIGINT NOT NULL,
  due        INT NOT NULL,
  PRIMARY KEY (gid, token),
  KEY {name}issued_due (due)
) ENGINE = InnoDB;

-- The last number drawn for each instance name of a prefix.
CREATE TABLE IF NOT EXISTS {instances} (
  hash   BINARY(32) NOT NULL PRIMARY KEY,
  n      BIGINT NOT NULL,
  prefix BLOB NOT NULL,
  name   BLOB NOT NULL
) ENGINE = InnoDB;

INSERT INTO {meta} (id, version, epoch) VALUES (1, 1, UUID()) ON DUPLICATE KEY UPDATE id = id;
UPDATE {meta} SET version = 1 WHERE version < 1;
