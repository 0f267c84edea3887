-- The statements of the inbox in PostgreSQL. Lists travel as arrays in text form, so that a
-- statement is one text whatever its number of rows, and is prepared once.

-- name: begin
BEGIN ISOLATION LEVEL READ COMMITTED;

-- name: meta
SELECT version, epoch FROM {meta};

-- name: group
SELECT id FROM {groups} WHERE hash = {hash}::bytea;

-- name: new_group
-- Nothing comes of it if the number is another group's.
INSERT INTO {groups} (id, hash, prefix, grp) VALUES ({id}::integer, {hash}::bytea, {prefix}::bytea, {group}::bytea) ON CONFLICT DO NOTHING;

-- name: lock
-- What others hold is not waited for: kind 2 says that it is there. Each row is found by the
-- key, whatever the planner believes of the table. A transaction whose process was stopped
-- is ended by the server.
WITH k AS MATERIALIZED (
  SELECT * FROM unnest({gid}::text::integer[], {token}::text::bytea[]) AS k (gid, token)
), own AS MATERIALIZED (
  SELECT r.* FROM k CROSS JOIN LATERAL (
    SELECT * FROM {records} r WHERE r.gid = k.gid AND r.token = k.token FOR UPDATE SKIP LOCKED
  ) r
)
SELECT 0, 0, NULL::bytea, m.version, 0, m.epoch, 0, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, 0,
  0::bigint, 0::bigint, 0::bigint, 0::bigint, 0, 0, 0::bigint, 0, '', NULL::bytea, NULL::bytea, NULL::bytea
FROM {meta} m WHERE set_config('idle_in_transaction_session_timeout', {idle}::text, true) <> ''
UNION ALL
SELECT 1, gid, token, version, state, claim, attempt, expires, due,
  COALESCE(at, 0), COALESCE(renewed, 0), COALESCE(lease, 0), COALESCE(incarnation, 0), COALESCE(spent, 0), COALESCE(expiries, 0),
  COALESCE(redrive, 0), COALESCE(fence, 0), COALESCE(forgot_by, ''), owner, fingerprint, result
FROM own
UNION ALL
SELECT 2, k.gid, k.token, 0, 0, '', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '', NULL, NULL, NULL
FROM k LEFT JOIN own USING (gid, token)
WHERE own.gid IS NULL AND (SELECT true FROM {records} r WHERE r.gid = k.gid AND r.token = k.token);

-- name: patient
-- For the rest of the transaction.
SELECT set_config('lock_timeout', {wait}::integer::text, true);

-- name: wait
SELECT count(*) FROM unnest({gid}::text::integer[], {token}::text::bytea[]) AS k (gid, token)
CROSS JOIN LATERAL (SELECT 1 FROM {records} r WHERE r.gid = k.gid AND r.token = k.token FOR UPDATE) r;

-- name: read
WITH k AS MATERIALIZED (
  SELECT * FROM unnest({gid}::text::integer[], {token}::text::bytea[]) AS k (gid, token)
)
SELECT 0, 0, NULL::bytea, m.version, 0, m.epoch, 0, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, 0,
  0::bigint, 0::bigint, 0::bigint, 0::bigint, 0, 0, 0::bigint, 0, '', NULL::bytea, NULL::bytea, NULL::bytea
FROM {meta} m
UNION ALL
SELECT 1, r.gid, r.token, r.version, state, claim, attempt, expires, due,
  COALESCE(at, 0), COALESCE(renewed, 0), COALESCE(lease, 0), COALESCE(incarnation, 0), COALESCE(spent, 0), COALESCE(expiries, 0),
  COALESCE(redrive, 0), COALESCE(fence, 0), COALESCE(forgot_by, ''), owner, fingerprint, result
FROM k JOIN {records} r ON r.gid = k.gid AND r.token = k.token;

-- name: leases
SELECT l.gid, l.token, l.claim, l.renewed, l.lease, l.expires
FROM unnest({gid}::text::integer[], {token}::text::bytea[]) AS k (gid, token)
JOIN {leases} l ON l.gid = k.gid AND l.token = k.token;

-- name: write
-- What somebody else is inserting is waited for, for a while.
WITH v AS MATERIALIZED (
  SELECT * FROM unnest({fresh}::text::integer[], {gid}::text::integer[], {token}::text::bytea[], {state}::text::smallint[], {claim}::text::text[],
    {attempt}::text::integer[], {expires}::text::bigint[], {due}::text::integer[], {at}::text::bigint[], {renewed}::text::bigint[],
    {lease}::text::bigint[], {incarnation}::text::bigint[], {spent}::text::integer[], {expiries}::text::integer[], {redrive}::text::bigint[],
    {fence}::text::integer[], {forgot_by}::text::text[], {owner}::text::bytea[], {fingerprint}::text::bytea[], {result}::text::bytea[])
  AS v (fresh, gid, token, state, claim, attempt, expires, due, at, renewed, lease, incarnation, spent, expiries, redrive,
    fence, forgot_by, owner, fingerprint, result)
), made AS (
  INSERT INTO {records} (gid, token, version, state, claim, attempt, expires, due, at, renewed, lease, incarnation, spent, expiries,
    redrive, fence, forgot_by, owner, fingerprint, result)
  SELECT gid, token, 1, state, claim, attempt, expires, due, at, renewed, lease, incarnation, spent, expiries,
    redrive, fence, forgot_by, owner, fingerprint, result
  FROM v WHERE fresh = 1 AND ({wait}::integer = 0 OR (SELECT set_config('lock_timeout', {wait}::integer::text, true)) <> '')
  ON CONFLICT (gid, token) DO NOTHING RETURNING 1
), changed AS (
  UPDATE {records} r SET version = 1, state = v.state, claim = v.claim, attempt = v.attempt, expires = v.expires, due = v.due, at = v.at,
    renewed = v.renewed, lease = v.lease, incarnation = v.incarnation, spent = v.spent, expiries = v.expiries, redrive = v.redrive,
    fence = v.fence, forgot_by = v.forgot_by, owner = v.owner, fingerprint = v.fingerprint, result = v.result
  FROM v WHERE v.fresh = 0 AND r.gid = v.gid AND r.token = v.token RETURNING 1
)
SELECT (SELECT count(*) FROM made) + (SELECT count(*) FROM changed);

-- name: renew
INSERT INTO {leases} (gid, token, claim, renewed, lease, expires)
SELECT * FROM unnest({gid}::text::integer[], {token}::text::bytea[], {claim}::text::text[], {renewed}::text::bigint[],
  {lease}::text::bigint[], {expires}::text::bigint[])
ON CONFLICT (gid, token) DO UPDATE SET claim = excluded.claim, renewed = excluded.renewed, lease = excluded.lease, expires = excluded.expires;

-- name: lock_issued
WITH k AS MATERIALIZED (
  SELECT * FROM unnest({gid}::text::integer[], {token}::text::bytea[]) AS k (gid, token)
), own AS MATERIALIZED (
  SELECT i.* FROM k CROSS JOIN LATERAL (
    SELECT * FROM {issued} i WHERE i.gid = k.gid AND i.token = k.token FOR UPDATE SKIP LOCKED
  ) i
)
SELECT 1, gid, token, version, check_by, COALESCE(checked_by, ''), expires, due FROM own
UNION ALL
SELECT 2, k.gid, k.token, 0, 0, '', 0, 0 FROM k LEFT JOIN own USING (gid, token)
WHERE own.gid IS NULL AND (SELECT true FROM {issued} i WHERE i.gid = k.gid AND i.token = k.token);

-- name: read_issued
SELECT 1, i.gid, i.token, i.version, i.check_by, COALESCE(i.checked_by, ''), i.expires, i.due
FROM unnest({gid}::text::integer[], {token}::text::bytea[]) AS k (gid, token)
JOIN {issued} i ON i.gid = k.gid AND i.token = k.token;

-- name: write_issued
WITH v AS MATERIALIZED (
  SELECT * FROM unnest({fresh}::text::integer[], {gid}::text::integer[], {token}::text::bytea[], {check_by}::text::bigint[],
    {checked_by}::text::text[], {expires}::text::bigint[], {due}::text::integer[])
  AS v (fresh, gid, token, check_by, checked_by, expires, due)
), made AS (
  INSERT INTO {issued} (gid, token, version, check_by, checked_by, expires, due)
  SELECT gid, token, 1, check_by, checked_by, expires, due FROM v
  WHERE fresh = 1 AND ({wait}::integer = 0 OR (SELECT set_config('lock_timeout', {wait}::integer::text, true)) <> '')
  ON CONFLICT (gid, token) DO NOTHING RETURNING 1
), changed AS (
  UPDATE {issued} i SET version = 1, check_by = v.check_by, checked_by = v.checked_by, expires = v.expires, due = v.due
  FROM v WHERE v.fresh = 0 AND i.gid = v.gid AND i.token = v.token RETURNING 1
)
SELECT (SELECT count(*) FROM made) + (SELECT count(*) FROM changed);

-- name: finish
UPDATE {records} r SET state = 3, at = c.now, expires = c.now + {retention}::bigint,
  due = CASE WHEN r.due BETWEEN c.want AND c.want + {slack}::integer THEN r.due ELSE c.want + 1 END,
  attempt = GREATEST(r.attempt, {attempt}::integer), result = {result}::bytea,
  spent = NULL, expiries = NULL, renewed = NULL, lease = NULL, owner = NULL, incarnation = NULL
FROM (
  SELECT n.now, ((n.now + {retention}::bigint + 59999999) / 60000000)::integer AS want
  FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now) n
) c
WHERE r.gid = {gid}::integer AND r.token = {token}::bytea AND r.claim = {claim}::text AND r.state = 1 AND r.version = 1
  AND set_config('idle_in_transaction_session_timeout', {idle}::text, true) <> '';

-- name: draw
INSERT INTO {instances} AS i (hash, n, prefix, name)
VALUES ({hash}::bytea, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, {prefix}::bytea, {group}::bytea)
ON CONFLICT (hash) DO UPDATE SET n = GREATEST(i.n + 1, excluded.n);

-- name: drawn
SELECT n FROM {instances} WHERE hash = {hash}::bytea;

-- name: due_records
-- Claims in progress that renewals keep are passed over here, and looked at again when the
-- rows are locked.
SELECT gid, token, state FROM {records} r WHERE due < {due}::integer
  AND NOT (state = 1 AND EXISTS (SELECT 1 FROM {leases} l WHERE l.gid = r.gid AND l.token = r.token AND l.expires > {now}::bigint))
ORDER BY due LIMIT {limit}::integer FOR UPDATE OF r SKIP LOCKED;

-- name: delete_records
DELETE FROM {records} r USING unnest({gid}::text::integer[], {token}::text::bytea[]) AS k (gid, token)
WHERE r.gid = k.gid AND r.token = k.token;

-- name: due_issued
SELECT gid, token, 0 FROM {issued} WHERE due < {due}::integer ORDER BY due LIMIT {limit}::integer FOR UPDATE SKIP LOCKED;

-- name: delete_issued
DELETE FROM {issued} r USING unnest({gid}::text::integer[], {token}::text::bytea[]) AS k (gid, token)
WHERE r.gid = k.gid AND r.token = k.token;

-- name: due_leases
SELECT gid, token, 0 FROM {leases} WHERE expires < {now}::bigint LIMIT {limit}::integer FOR UPDATE SKIP LOCKED;

-- name: delete_leases
DELETE FROM {leases} r USING unnest({gid}::text::integer[], {token}::text::bytea[]) AS k (gid, token)
WHERE r.gid = k.gid AND r.token = k.token;

-- name: end_leases
DELETE FROM {leases} l USING unnest({gid}::text::integer[], {token}::text::bytea[], {claim}::text::text[]) AS k (gid, token, claim)
WHERE l.gid = k.gid AND l.token = k.token AND l.claim = k.claim;

-- name: old_instances
DELETE FROM {instances} WHERE n < {now}::bigint;
