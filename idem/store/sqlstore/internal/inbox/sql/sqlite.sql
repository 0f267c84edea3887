-- The statements of the inbox in SQLite. Values are written into them, numbers as they are
-- and bytes in hexadecimal. Whoever has begun is alone: nothing is locked, and nothing that
-- was absent is there at once.

-- name: begin
BEGIN IMMEDIATE;

-- name: meta
SELECT version, epoch FROM {meta};

-- name: group
SELECT id FROM {groups} WHERE hash = {hash};

-- name: new_group
-- Nothing comes of it if the number is another group's.
INSERT INTO {groups} (id, hash, prefix, grp) VALUES ({id}, {hash}, {prefix}, {group}) ON CONFLICT DO NOTHING;

-- name: lock
SELECT 0, 0, NULL, m.version, 0, m.epoch, 0, {now}, 0, 0, 0, 0, 0, 0, 0, 0, 0, '', NULL, NULL, NULL FROM {meta} m
UNION ALL
SELECT 1, gid, token, version, state, claim, attempt, expires, due,
  COALESCE(at, 0), COALESCE(renewed, 0), COALESCE(lease, 0), COALESCE(incarnation, 0), COALESCE(spent, 0), COALESCE(expiries, 0),
  COALESCE(redrive, 0), COALESCE(fence, 0), COALESCE(forgot_by, ''), owner, fingerprint, result
FROM {records} WHERE {keys};

-- name: read
SELECT 0, 0, NULL, m.version, 0, m.epoch, 0, {now}, 0, 0, 0, 0, 0, 0, 0, 0, 0, '', NULL, NULL, NULL FROM {meta} m
UNION ALL
SELECT 1, gid, token, version, state, claim, attempt, expires, due,
  COALESCE(at, 0), COALESCE(renewed, 0), COALESCE(lease, 0), COALESCE(incarnation, 0), COALESCE(spent, 0), COALESCE(expiries, 0),
  COALESCE(redrive, 0), COALESCE(fence, 0), COALESCE(forgot_by, ''), owner, fingerprint, result
FROM {records} WHERE {keys};

-- name: leases
SELECT gid, token, claim, renewed, lease, expires FROM {leases} WHERE {keys};

-- name: insert
INSERT INTO {records} (gid, token, version, state, claim, attempt, expires, due, at, renewed, lease, incarnation, spent, expiries,
  redrive, fence, forgot_by, owner, fingerprint, result) VALUES {rows};

-- name: update
INSERT INTO {records} (gid, token, version, state, claim, attempt, expires, due, at, renewed, lease, incarnation, spent, expiries,
  redrive, fence, forgot_by, owner, fingerprint, result) VALUES {rows}
ON CONFLICT (gid, token) DO UPDATE SET version = excluded.version, state = excluded.state, claim = excluded.claim,
  attempt = excluded.attempt, expires = excluded.expires, due = excluded.due, at = excluded.at, renewed = excluded.renewed,
  lease = excluded.lease, incarnation = excluded.incarnation, spent = excluded.spent, expiries = excluded.expiries,
  redrive = excluded.redrive, fence = excluded.fence, forgot_by = excluded.forgot_by, owner = excluded.owner,
  fingerprint = excluded.fingerprint, result = excluded.result;

-- name: renew
INSERT INTO {leases} (gid, token, claim, renewed, lease, expires) VALUES {rows}
ON CONFLICT (gid, token) DO UPDATE SET claim = excluded.claim, renewed = excluded.renewed, lease = excluded.lease, expires = excluded.expires;

-- name: lock_issued
SELECT 1, gid, token, version, check_by, COALESCE(checked_by, ''), expires, due FROM {issued} WHERE {keys};

-- name: read_issued
SELECT 1, gid, token, version, check_by, COALESCE(checked_by, ''), expires, due FROM {issued} WHERE {keys};

-- name: insert_issued
INSERT INTO {issued} (gid, token, version, check_by, checked_by, expires, due) VALUES {rows};

-- name: update_issued
INSERT INTO {issued} (gid, token, version, check_by, checked_by, expires, due) VALUES {rows}
ON CONFLICT (gid, token) DO UPDATE SET version = excluded.version, check_by = excluded.check_by, checked_by = excluded.checked_by,
  expires = excluded.expires, due = excluded.due;

-- name: hold
-- Takes the write lock if the claim is still held, and changes nothing.
UPDATE {records} SET attempt = attempt WHERE gid = {gid} AND token = {token} AND claim = {claim} AND state = 1 AND version = 1;

-- name: hold_all
-- Takes the write lock and changes nothing.
UPDATE {meta} SET id = id WHERE id = 1;

-- name: finish
UPDATE {records} SET state = 3, at = {now}, expires = {now} + {retention},
  due = CASE WHEN due BETWEEN ({now} + {retention} + 59999999) / 60000000 AND ({now} + {retention} + 59999999) / 60000000 + {slack} THEN due
    ELSE ({now} + {retention} + 59999999) / 60000000 + 1 END,
  attempt = MAX(attempt, {attempt}), result = {result},
  spent = NULL, expiries = NULL, renewed = NULL, lease = NULL, owner = NULL, incarnation = NULL
WHERE gid = {gid} AND token = {token} AND claim = {claim} AND state = 1 AND version = 1;

-- name: draw
INSERT INTO {instances} (hash, n, prefix, name) VALUES ({hash}, {now}, {prefix}, {group})
ON CONFLICT (hash) DO UPDATE SET n = MAX(n + 1, excluded.n);

-- name: drawn
SELECT n FROM {instances} WHERE hash = {hash};

-- name: due_records
-- Claims in progress that renewals keep are passed over here.
SELECT gid, token, state FROM {records} r WHERE due < {due}
  AND NOT (state = 1 AND EXISTS (SELECT 1 FROM {leases} l WHERE l.gid = r.gid AND l.token = r.token AND l.expires > {now}))
ORDER BY due LIMIT {limit};

-- name: delete_records
DELETE FROM {records} WHERE {keys};

-- name: due_issued
SELECT gid, token, 0 FROM {issued} WHERE due < {due} ORDER BY due LIMIT {limit};

-- name: delete_issued
DELETE FROM {issued} WHERE {keys};

-- name: due_leases
SELECT gid, token, 0 FROM {leases} WHERE expires < {now} LIMIT {limit};

-- name: delete_leases
DELETE FROM {leases} WHERE {keys};

-- name: end_leases
DELETE FROM {leases} WHERE (gid, token, claim) IN (VALUES {rows});

-- name: old_instances
DELETE FROM {instances} WHERE n < {now};
