-- The statements of the inbox in MySQL and MariaDB. Values are written into them, numbers as
-- they are and bytes in hexadecimal: a statement with parameters would be prepared each time.

-- name: begin
-- The gap locks of other levels would have inserts of absent rows wait for each other.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
START TRANSACTION;

-- name: meta
SELECT version, epoch FROM {meta};

-- name: group
SELECT id FROM {groups} WHERE hash = {hash};

-- name: new_group
-- A conflict is no error: the group is there, or the number is another one's.
INSERT INTO {groups} (id, hash, prefix, grp) VALUES ({id}, {hash}, {prefix}, {group});

-- name: largest
SELECT @@max_allowed_packet;

-- name: lock
-- What others hold is not waited for: kind 2 says what is there, held or not.
(SELECT 0, 0 AS gid, NULL AS token, m.version, 0 AS state, m.epoch AS claim, 0 AS attempt,
  TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) AS expires, 0 AS due, 0 AS at, 0 AS renewed, 0 AS lease, 0 AS incarnation,
  0 AS spent, 0 AS expiries, 0 AS redrive, 0 AS fence, '' AS forgot_by, NULL AS owner, NULL AS fingerprint, NULL AS result FROM {meta} m)
UNION ALL
(SELECT 1, gid, token, version, state, claim, attempt, expires, due,
  COALESCE(at, 0), COALESCE(renewed, 0), COALESCE(lease, 0), COALESCE(incarnation, 0), COALESCE(spent, 0), COALESCE(expiries, 0),
  COALESCE(redrive, 0), COALESCE(fence, 0), COALESCE(forgot_by, ''), owner, fingerprint, result
FROM {records} FORCE INDEX (PRIMARY) WHERE {keys} FOR UPDATE SKIP LOCKED)
UNION ALL
(SELECT 2, gid, token, 0, 0, '', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '', NULL, NULL, NULL
FROM {records} FORCE INDEX (PRIMARY) WHERE {keys});

-- name: patient
-- The session's own setting is put back by impatient.
SET @idemq_wait = @@SESSION.innodb_lock_wait_timeout, SESSION innodb_lock_wait_timeout = 1;

-- name: wait
SELECT gid FROM {records} FORCE INDEX (PRIMARY) WHERE {keys} FOR UPDATE;

-- name: impatient
SET SESSION innodb_lock_wait_timeout = @idemq_wait;

-- name: read
(SELECT 0, 0 AS gid, NULL AS token, m.version, 0 AS state, m.epoch AS claim, 0 AS attempt,
  TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) AS expires, 0 AS due, 0 AS at, 0 AS renewed, 0 AS lease, 0 AS incarnation,
  0 AS spent, 0 AS expiries, 0 AS redrive, 0 AS fence, '' AS forgot_by, NULL AS owner, NULL AS fingerprint, NULL AS result FROM {meta} m)
UNION ALL
(SELECT 1, gid, token, version, state, claim, attempt, expires, due,
  COALESCE(at, 0), COALESCE(renewed, 0), COALESCE(lease, 0), COALESCE(incarnation, 0), COALESCE(spent, 0), COALESCE(expiries, 0),
  COALESCE(redrive, 0), COALESCE(fence, 0), COALESCE(forgot_by, ''), owner, fingerprint, result
FROM {records} FORCE INDEX (PRIMARY) WHERE {keys});

-- name: leases
SELECT gid, token, claim, renewed, lease, expires FROM {leases} FORCE INDEX (PRIMARY) WHERE {keys};

-- name: insert
-- What somebody else is inserting is waited for, for a while; in MySQL, which cannot say so in
-- the statement, for as long as its setting says.
/*M!100106 SET STATEMENT innodb_lock_wait_timeout = {wait} FOR */ INSERT INTO {records} (gid, token, version, state, claim, attempt, expires, due, at, renewed, lease, incarnation, spent, expiries,
  redrive, fence, forgot_by, owner, fingerprint, result) VALUES {rows};

-- name: update
-- The rows are there and locked.
INSERT INTO {records} (gid, token, version, state, claim, attempt, expires, due, at, renewed, lease, incarnation, spent, expiries,
  redrive, fence, forgot_by, owner, fingerprint, result) VALUES {rows}
ON DUPLICATE KEY UPDATE version = VALUES(version), state = VALUES(state), claim = VALUES(claim), attempt = VALUES(attempt),
  expires = VALUES(expires), due = VALUES(due), at = VALUES(at), renewed = VALUES(renewed), lease = VALUES(lease),
  incarnation = VALUES(incarnation), spent = VALUES(spent), expiries = VALUES(expiries), redrive = VALUES(redrive), fence = VALUES(fence),
  forgot_by = VALUES(forgot_by), owner = VALUES(owner), fingerprint = VALUES(fingerprint), result = VALUES(result);

-- name: renew
INSERT INTO {leases} (gid, token, claim, renewed, lease, expires) VALUES {rows}
ON DUPLICATE KEY UPDATE claim = VALUES(claim), renewed = VALUES(renewed), lease = VALUES(lease), expires = VALUES(expires);

-- name: lock_issued
(SELECT 1, gid, token, version, check_by, COALESCE(checked_by, '') AS checked_by, expires, due
FROM {issued} FORCE INDEX (PRIMARY) WHERE {keys} FOR UPDATE SKIP LOCKED)
UNION ALL
(SELECT 2, gid, token, 0, 0, '', 0, 0 FROM {issued} FORCE INDEX (PRIMARY) WHERE {keys});

-- name: read_issued
SELECT 1, gid, token, version, check_by, COALESCE(checked_by, ''), expires, due FROM {issued} FORCE INDEX (PRIMARY) WHERE {keys};

-- name: insert_issued
/*M!100106 SET STATEMENT innodb_lock_wait_timeout = {wait} FOR */ INSERT INTO {issued} (gid, token, version, check_by, checked_by, expires, due) VALUES {rows};

-- name: update_issued
INSERT INTO {issued} (gid, token, version, check_by, checked_by, expires, due) VALUES {rows}
ON DUPLICATE KEY UPDATE version = VALUES(version), check_by = VALUES(check_by), checked_by = VALUES(checked_by),
  expires = VALUES(expires), due = VALUES(due);

-- name: finish
UPDATE {records} SET state = 3, at = TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)),
  expires = TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) + {retention},
  due = CASE
    WHEN due BETWEEN (TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) + {retention} + 59999999) DIV 60000000
      AND (TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) + {retention} + 59999999) DIV 60000000 + {slack} THEN due
    ELSE (TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) + {retention} + 59999999) DIV 60000000 + 1 END,
  attempt = GREATEST(attempt, {attempt}), result = {result},
  spent = NULL, expiries = NULL, renewed = NULL, lease = NULL, owner = NULL, incarnation = NULL
WHERE gid = {gid} AND token = {token} AND claim = {claim} AND state = 1 AND version = 1;

-- name: draw
INSERT INTO {instances} (hash, n, prefix, name)
VALUES ({hash}, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)), {prefix}, {group})
ON DUPLICATE KEY UPDATE n = GREATEST(n + 1, VALUES(n));

-- name: drawn
SELECT n FROM {instances} WHERE hash = {hash};

-- name: due_records
-- Claims in progress that renewals keep are passed over here, and looked at again when the
-- rows are locked.
SELECT gid, token, state FROM {records} r WHERE due < {due}
  AND NOT (state = 1 AND EXISTS (SELECT 1 FROM {leases} l WHERE l.gid = r.gid AND l.token = r.token AND l.expires > {now}))
ORDER BY due LIMIT {limit} FOR UPDATE SKIP LOCKED;

-- name: delete_records
DELETE FROM {records} WHERE {keys};

-- name: due_issued
SELECT gid, token, 0 FROM {issued} WHERE due < {due} ORDER BY due LIMIT {limit} FOR UPDATE SKIP LOCKED;

-- name: delete_issued
DELETE FROM {issued} WHERE {keys};

-- name: due_leases
SELECT gid, token, 0 FROM {leases} WHERE expires < {now} LIMIT {limit} FOR UPDATE SKIP LOCKED;

-- name: delete_leases
DELETE FROM {leases} WHERE {keys};

-- name: end_leases
DELETE FROM {leases} WHERE (gid, token, claim) IN ({rows});

-- name: old_instances
DELETE FROM {instances} WHERE n < {now};
