-- Executes operations on records, in the order given. See store.Kind for what
-- each does, and parse, hold, rest and finish for the values.
--
-- Before it stands either compact.lua or `local sets`: the records are all there is. With
-- sets a token that is done is in them, and has a record only where somebody may ask for
-- one soon. Where there is a record, it counts.
--
-- KEYS[1]    the epoch key
-- KEYS[2..]  per operation its key; behind it, for Inspect always and for Begin and
--            Spend under issued-only, the token's issued key
--
-- ARGV[1]    what the epoch key is set to if it is missing; empty: it is not set
-- ARGV[2]    1: write the epoch key, so that WAIT has something to wait for
-- ARGV[3]    lease in microseconds
-- ARGV[4]    the in-progress record's last fields: incarnation|owner
-- ARGV[5]    expiry of in-progress records, ms
-- ARGV[6]    expiry of all other records, ms
-- ARGV[7]    how long an issued token may wait for its Check, microseconds
-- ARGV[8]    expiry of issued tokens, ms
-- ARGV[9]    expiry of spent tokens at least, ms
-- ARGV[10]   1: issued-only
-- ARGV[11]   max expiries of every b
-- ARGV[12]   one letter per operation
-- ARGV[13]   with sets: how long a generation lasts, ms
-- ARGV[14..] per operation the claim id, and behind it for the capitals B, S and C a
--            parameter:
--              b Begin (no redrive, no fingerprint)
--              B Begin      redrive|max expiries|fingerprint
--              S Spend      redrive|max expiries|fingerprint
--              c Commit (attempt 1, no result, and the claim id ends in six digits)
--              C Commit     attempt|result
--              r Release, R counted
--              w Renew, y Bury, f Forget, q Inspect, t Issue, k Check
--
-- Reply: the clock in microseconds; the epoch key's value, empty if missing; one
-- line per operation, joined by newlines; then the byte strings that lines refer
-- to by their number. Lines:
--   (empty)                          the usual: OK, or Claimed at attempt 1
--   k attempt|spent|expiries|redrive          Claimed
--   d at|attempt|redrive|result no.           Duplicate, done (no. 0: no result)
--   x at|attempt|redrive|0                    Duplicate, dead
--   i retry                                   InProgress, microseconds
--   s retry                                   Superseded, microseconds
--   n spent|expiries|redrive                  NeedAlone
--   u, c, l                                   Unknown, Conflict, Lost
--   q state|attempt|spent|expiries|redrive|at|lease left|incarnation|expires|issued|strings no.
--                                             a record; strings: claim, owner, fingerprint, result
--   !t, !u, !n and key no. 1 or 2             wrong type, unreadable, newer version

local claim_param = '^(%d+)|(%d+)|(.*)$' -- of B and S
local number = '^([1-9]%d%d%d%d%d%d%d%d%d%d%d%d)(%d%d%d%d%d%d)$' -- when it was done, and how its claim ended

-- operations returns what executes all that is not as usual, by its letter. Each call of the
-- script would pay for these functions, and for each local that they took from it, as much
-- as for some operations: so they are made where they are needed, of what they are given.
local function operations(now, stamp, lease_ends, terms, reply)
  local find, format, match, sub, byte, floor = string.find, string.format, string.match, string.sub, string.byte, math.floor
  local call, pcall = redis.call, redis.pcall
  local ARGV, sets = ARGV, sets
  local incarnation, owner = match(ARGV[4], '^(%d+)|(.*)$')
  local tail = lease_ends .. terms
  local px_live, px_kept, px_issued, px_spent = ARGV[5], ARGV[6], ARGV[8], ARGV[9]
  local check_until = format('%.0f', now + ARGV[7])
  local issued_only = ARGV[10] == '1'

  -- add keeps a byte string for the reply and returns its number.
  local function add(s)
    reply[#reply + 1] = s
    return #reply - 3
  end

  -- higher compares two decimal numbers of any length.
  local function higher(a, b)
    if #a ~= #b then
      return #a > #b
    end
    return a > b
  end

  -- wrong is the line for an error of reading key n of an operation.
  local function wrong(v, n)
    if find(v.err, '^WRONGTYPE') then
      return '!t' .. n
    end
    error(v)
  end

  -- get reads a key: value or false, and the line to answer if it cannot be read.
  local function get(key, n)
    local v = pcall('GET', key)
    if type(v) == 'table' then
      return nil, wrong(v, n)
    end
    return v
  end

  -- broken is the line for a value that is no record.
  local function broken(v, n)
    if find(v, '^[2-9]%l|') then
      return '!n' .. n
    end
    return '!u' .. n
  end

  -- odd tells numbers that this script never wrote: of more digits than stay exact here, or
  -- with a zero before them. Counts are calculated with and written again, which takes 14 of
  -- them at most.
  local function odd(digits, ...)
    for i = 1, select('#', ...) do
      local n = select(i, ...)
      if #n > digits or #n > 1 and byte(n) == 48 then
        return true
      end
    end
    return false
  end

  local function odd_counts(...)
    return odd(13, ...)
  end

  -- wide: a number of 64 bits.
  local function wide(n)
    return not odd(20, n) and (#n < 20 or n <= '18446744073709551615')
  end

  -- parse takes a record apart; nil, and the line to answer, if it is none.
  local function parse(v)
    local at, ending = match(v, number)
    if at then
      return {st = 'd', claim = '~' .. ending, at = at, attempt = 1, redrive = '0', fp = '', fence = '', fid = '', spent = 0,
        expiries = 0, result = ''}
    end
    local st = match(v, '^1(%l)|')
    local r
    if st == 'p' then
      local claim, attempt, spent, expiries, redrive, fp, fence, fid, deadline, lease, inc, who = match(v,
        '^1p|([^|]*)|(%d+)|(%d+)|(%d+)|(%d+)|([^|]*)|(%d*)|([^|]*)|(%d+)|(%d+)|(%d+)|([^|]*)$')
      if claim and wide(inc) and not odd_counts(attempt, spent, expiries, fence) and not odd(16, redrive, deadline, lease) then
        r = {claim = claim, attempt = attempt + 0, spent = spent + 0, expiries = expiries + 0, redrive = redrive, fp = fp,
          fence = fence, fid = fid, deadline = deadline + 0, lease = lease + 0, inc = inc, owner = who}
      end
    elseif st == 'r' or st == 'f' then
      local claim, attempt, spent, expiries, redrive, fp, fence, fid = match(v,
        '^1%l|([^|]*)|(%d+)|(%d+)|(%d+)|(%d+)|([^|]*)|(%d*)|([^|]*)$')
      if claim and not odd_counts(attempt, spent, expiries, fence) and not odd(16, redrive) then
        r = {claim = claim, attempt = attempt + 0, spent = spent + 0, expiries = expiries + 0, redrive = redrive, fp = fp,
          fence = fence, fid = fid}
      end
    elseif st == 'd' or st == 's' or st == 'x' then
      local claim, at = match(v, '^1%l|([^|]*)|(%d+)$')
      if claim and not odd(16, at) then
        r = {claim = claim, at = at, attempt = 1, redrive = '0', fp = '', fence = '', fid = '', spent = 0, expiries = 0, result = ''}
      else
        local attempt, redrive, fp, fence, fid, spent, expiries, result
        claim, at, attempt, redrive, fp, fence, fid, spent, expiries, result = match(v,
          '^1%l|([^|]*)|(%d+)|(%d+)|(%d+)|([^|]*)|(%d*)|([^|]*)|(%d+)|(%d+)|(.*)$')
        if claim and not odd_counts(attempt, spent, expiries, fence) and not odd(16, at, redrive) then
          r = {claim = claim, at = at, attempt = attempt + 0, redrive = redrive, fp = fp, fence = fence, fid = fid,
            spent = spent + 0, expiries = expiries + 0, result = result}
        end
      end
    end
    if not r then
      return nil, broken(v, 1)
    end
    r.st = st
    return r
  end

  -- load is get and parse: record or false, and the line to answer on error.
  local function load(key)
    local v, err = get(key, 1)
    if not v then
      return v, err
    end
    return parse(v)
  end

  local function live(r)
    return r.st == 'p' and now < r.deadline
  end

  -- owns tells whether a record's last claim is this one; of some it has only how they end.
  local function owns(r, claim)
    return r.claim == claim or r.claim == '~' .. sub(claim, -6)
  end

  -- hold writes r as in progress; lease holds the fields from the deadline on.
  local function hold(key, r, lease)
    call('SET', key, '1p|' .. r.claim .. '|' .. r.attempt .. '|' .. r.spent .. '|' .. r.expiries .. '|' .. r.redrive .. '|' ..
      r.fp .. '|' .. r.fence .. '|' .. r.fid .. '|' .. lease, 'PX', px_live)
  end

  -- rest writes r as released (r) or forgotten (f).
  local function rest(key, st, r)
    call('SET', key, '1' .. st .. '|' .. r.claim .. '|' .. r.attempt .. '|' .. r.spent .. '|' .. r.expiries .. '|' .. r.redrive ..
      '|' .. r.fp .. '|' .. r.fence .. '|' .. r.fid, 'PX', px_kept)
  end

  -- finish writes r as done (d), done by Spend (s) or dead (x), since now; or it returns the
  -- line to answer. With sets the record of a done token stays for repeats of a Spend and
  -- of a Forget, for as long as that of a Check does.
  local function finish(key, st, r, result)
    local px = px_kept
    if sets and st ~= 'x' then
      local err = sets.add()
      if err then
        return err
      elseif st == 'd' and r.fid == '' then
        call('DEL', key)
        return nil
      end
      px = px_spent
    end
    local v = '1' .. st .. '|' .. r.claim .. '|' .. stamp
    if r.attempt ~= 1 or r.spent ~= 0 or r.expiries ~= 0 or r.redrive ~= '0' or r.fp ~= '' or r.fence ~= '' or r.fid ~= '' or
      result ~= '' then
      v = v .. '|' .. r.attempt .. '|' .. r.redrive .. '|' .. r.fp .. '|' .. r.fence .. '|' .. r.fid ..
        '|' .. r.spent .. '|' .. r.expiries .. '|' .. result
    elseif st == 'd' and #stamp == 13 and find(r.claim, '%d%d%d%d%d%d$') then
      v = stamp .. sub(r.claim, -6)
    end
    call('SET', key, v, 'PX', px)
    return nil
  end

  -- done tells whether the sets have a token; nil, and the line to answer, on error.
  local function done()
    if sets then
      return sets.where()
    end
    return false
  end

  local function claimed(r)
    return 'k' .. r.attempt .. '|' .. r.spent .. '|' .. r.expiries .. '|' .. r.redrive
  end

  local function duplicate(r)
    local no = 0
    if r.result ~= '' then
      no = add(r.result)
    end
    return (r.st == 'x' and 'x' or 'd') .. r.at .. '|' .. r.attempt .. '|' .. r.redrive .. '|' .. no
  end

  local function in_progress(letter, retry)
    return letter .. format('%.0f', retry)
  end

  -- issued tells whether a token is registered, and whether it is spent; or the line
  -- to answer on error.
  local function issued(key, n)
    local v, err = get(key, n)
    if err then
      return nil, nil, err
    end
    if not v then
      return false, false
    end
    if find(v, '^1i|%d+$') then
      return true, false
    end
    if find(v, '^1c|') then
      return true, true
    end
    return nil, nil, broken(v, n)
  end

  -- unknown is the line for a token without a record that must not pass, else nil.
  local function unknown(ikey, redrive)
    if not issued_only or redrive ~= '0' then
      return nil
    end
    local known, _, err = issued(ikey, 2)
    if err then
      return err
    end
    if not known then
      return 'u'
    end
    return nil
  end

  -- conflict: both carry a fingerprint, they differ, and neither is this a repeat nor
  -- a redrive that is accepted.
  local function conflict(r, claim, fp, anew)
    return fp ~= '' and r.fp ~= '' and fp ~= r.fp and not owns(r, claim) and not anew
  end

  -- take counts the claim that is granted, of its payload. Claims of another payload are
  -- fenced off: what they complete is not this one.
  local function take(r, claim, fp)
    if conflict(r, claim, fp) then
      r.fence = r.attempt
    end
    if fp ~= '' then
      r.fp = fp
    end
    r.claim, r.attempt = claim, r.attempt + 1
  end

  -- begin answers a Begin that met a record, or the error of reading it; or nothing so far,
  -- under issued-only.
  local function begin(key, claim, param, ikey, met)
    local redrive, max, fp = '0', ARGV[11], ''
    if param then
      redrive, max, fp = match(param, claim_param)
    end
    local r, err
    if met == nil then
      r, err = load(key)
    elseif type(met) == 'table' then
      err = wrong(met, 1)
    else
      r, err = parse(met)
    end
    if err then
      return err
    elseif not r then
      local line = unknown(ikey, redrive)
      if line then
        return line
      end
      hold(key, {claim = claim, attempt = 1, spent = 0, expiries = 0, redrive = redrive, fp = fp, fence = '', fid = ''}, tail)
      return ''
    end

    local own, st, held = owns(r, claim), r.st, live(r)
    local over = st == 'p' and not held
    local answer, retry = 'i', held and r.deadline - now
    if held and not own and owner ~= '' and r.owner == owner then
      if higher(incarnation, r.inc) then
        retry = floor(r.lease / 3) + floor(r.lease / 8) - (now - (r.deadline - r.lease)) + 1
        if retry <= 0 then
          held, over = false, true
        end
      elseif higher(r.inc, incarnation) then
        answer = 's'
      end
    end
    local anew = higher(redrive, r.redrive) and (over or st == 'r' or st == 'f' or st == 'x')

    if conflict(r, claim, fp, anew) then
      return 'c'
    elseif st == 'd' or st == 's' or st == 'x' and not anew then
      return duplicate(r)
    elseif st == 'p' and own then
      hold(key, r, tail)
      return claimed(r)
    elseif (st == 'r' or st == 'f') and own then
      return 'l'
    elseif held then
      return in_progress(answer, retry)
    end

    if anew then
      r.redrive, r.spent, r.expiries = redrive, 0, 0
    elseif over then
      r.spent, r.expiries = r.spent + 1, r.expiries + 1
    end
    max = max + 0
    if max > 0 and r.expiries >= max then
      return 'n' .. r.spent .. '|' .. r.expiries .. '|' .. r.redrive
    end
    take(r, claim, fp)
    hold(key, r, tail)
    return claimed(r)
  end

  local function spend(key, claim, param, ikey)
    local redrive, _, fp = match(param, claim_param)
    local r, err = load(key)
    if err then
      return err
    end
    if not r then
      local is
      is, err = done()
      if err then
        return err
      elseif is then
        return 'D'
      end
      local line = unknown(ikey, redrive)
      if line then
        return line
      end
      return finish(key, 's',
        {claim = claim, attempt = 1, spent = 0, expiries = 0, redrive = redrive, fp = fp, fence = '', fid = ''}, '') or ''
    end
    local st, held = r.st, live(r)
    local over = st == 'p' and not held
    local anew = higher(redrive, r.redrive) and (over or st == 'r' or st == 'f' or st == 'x')
    if conflict(r, claim, fp, anew) then
      return 'c'
    elseif st == 's' and owns(r, claim) then
      return claimed(r)
    elseif st == 'f' and owns(r, claim) then
      return 'l'
    elseif st == 'd' or st == 's' or st == 'x' and not anew then
      return duplicate(r)
    elseif held then
      return in_progress('i', r.deadline - now)
    end
    if anew then
      r.redrive, r.spent, r.expiries = redrive, 0, 0
    elseif over then
      r.spent, r.expiries = r.spent + 1, r.expiries + 1
    end
    take(r, claim, fp)
    return finish(key, 's', r, '') or claimed(r)
  end

  -- commit answers a Commit: of c, what it met (a record, the error of reading it, or false);
  -- of C, what it reads here.
  local function commit(key, claim, param, _, met)
    local attempt, result = '1', ''
    if param then
      attempt, result = match(param, '^(%d+)|(.*)$')
      met = pcall('GET', key)
    end
    if not met then
      local is, err = done()
      if err then
        return err
      elseif is then
        return ''
      end
      return finish(key, 'd',
        {claim = claim, attempt = attempt + 0, spent = 0, expiries = 0, redrive = '0', fp = '', fence = '', fid = ''}, result) or ''
    elseif type(met) == 'table' then
      return wrong(met, 1)
    end
    local r, err = parse(met)
    if not r then
      return err
    end
    attempt = attempt + 0
    local st, own = r.st, owns(r, claim)
    if own and (st == 'd' or st == 's') then
      return ''
    elseif not (own and st == 'p') and st ~= 'r' and st ~= 'x' or r.fence ~= '' and attempt <= r.fence + 0 then
      return 'l'
    end
    r.claim, r.spent, r.expiries = claim, 0, 0
    if attempt > r.attempt then
      r.attempt = attempt
    end
    return finish(key, 'd', r, result) or ''
  end

  local function release(key, claim, counted)
    local r, err = load(key)
    if err then
      return err
    elseif not r or not owns(r, claim) then
      return 'l'
    elseif r.st == 'r' then
      return ''
    elseif r.st ~= 'p' then
      return 'l'
    end
    if counted then
      r.spent = r.spent + 1
    end
    rest(key, 'r', r)
    return ''
  end

  local function renew(key, claim)
    local r, err = load(key)
    if err then
      return err
    elseif not r or r.st ~= 'p' or not owns(r, claim) then
      return 'l'
    end
    hold(key, r, lease_ends .. '|' .. ARGV[3] .. '|' .. r.inc .. '|' .. r.owner)
    return ''
  end

  local function bury(key, claim)
    local r, err = load(key)
    if err then
      return err
    elseif not r or not owns(r, claim) then
      return 'l'
    elseif r.st == 'x' then
      return ''
    elseif r.st ~= 'p' and r.st ~= 's' then
      return 'l'
    end
    if sets and r.st == 's' then
      local _, line = sets.remove()
      if line then
        return line
      end
    end
    r.spent, r.expiries = 0, 0
    return finish(key, 'x', r, '') or ''
  end

  local function forget(key, claim)
    local r, err = load(key)
    if err then
      return err
    elseif not r and not sets or r and r.fid == claim then
      return ''
    elseif r and live(r) then
      return in_progress('i', r.deadline - now)
    end
    if sets and (not r or r.st == 'd' or r.st == 's') then
      local was
      was, err = sets.remove()
      if err then
        return err
      elseif not r and not was then
        return ''
      end
      r = r or {claim = '', attempt = 0, redrive = '0'} -- what is not known of it
    end
    r.spent, r.expiries, r.fp, r.fence, r.fid = 0, 0, '', r.attempt, claim
    rest(key, 'f', r)
    return ''
  end

  local function inspect(key, _, _, ikey)
    local r, err = load(key)
    if err then
      return err
    end
    local known, spent, ierr = issued(ikey, 2)
    if ierr then
      return ierr
    end
    local home
    if not r or r.st == 'd' or r.st == 's' then
      home, err = done()
      if err then
        return err
      end
    end
    local expires = 0
    if r then
      expires = call('PTTL', key)
    else
      r = {st = home and 'd' or '-', attempt = 0, spent = 0, expiries = 0, redrive = '0', claim = '', fp = ''}
    end
    if home then
      expires = math.max(expires, call('PTTL', home))
    end
    local left = 0
    if r.st == 'p' then
      left = r.deadline - now
    elseif r.at then
      r.spent, r.expiries = 0, 0
    end
    local no = add(r.claim)
    add(r.owner or '')
    add(r.fp)
    add(r.result or '')
    return 'q' .. r.st .. '|' .. r.attempt .. '|' .. r.spent .. '|' .. r.expiries .. '|' .. r.redrive .. '|' .. (r.at or '0') ..
      '|' .. format('%.0f', left) .. '|' .. (r.inc or '0') .. '|' .. expires .. '|' .. (spent and 2 or known and 1 or 0) .. '|' .. no
  end

  -- longest is the longer of px and what the key has left.
  local function longest(key, px)
    return format('%.0f', math.max(px, call('PTTL', key)))
  end

  local function issue(key)
    local known, spent, err = issued(key, 1)
    if err then
      return err
    end
    local px = px_issued
    if known then
      px = longest(key, px)
    end
    if spent then
      call('SET', key, call('GET', key), 'PX', px)
      return ''
    end
    call('SET', key, '1i|' .. check_until, 'PX', px)
    return ''
  end

  local function check(key, claim)
    local v, err = get(key, 1)
    if err then
      return err
    elseif not v then
      return 'l'
    end
    local by = match(v, '^1c|(.*)$')
    if by then
      return by == claim and '' or 'l'
    end
    local deadline = match(v, '^1i|(%d+)$')
    if not deadline then
      return broken(v, 1)
    elseif now >= deadline + 0 then
      return 'l'
    end
    call('SET', key, '1c|' .. claim, 'PX', longest(key, px_spent))
    return ''
  end

  return {
    b = begin, B = begin, S = spend, c = commit, C = commit, r = release,
    R = function(key, claim)
      return release(key, claim, true)
    end,
    w = renew, y = bury, f = forget, q = inspect, t = issue, k = check,
  }
end

local find, match, sub, type = string.find, string.match, string.sub, type
local call, pcall = redis.call, redis.pcall
local KEYS, ARGV = KEYS, ARGV

local epoch = call('GET', KEYS[1])
if not epoch or epoch == '' then
  epoch = ARGV[1]
  if epoch ~= '' then
    call('SET', KEYS[1], epoch)
  end
elseif ARGV[2] == '1' then
  call('SET', KEYS[1], epoch)
end

local clock = call('TIME')
local micros = sub('00000' .. clock[2], -6)
local now_text = clock[1] .. micros
local now = now_text + 0
local stamp = clock[1] .. sub(micros, 1, 3) -- since when a token is done or dead
local short = #stamp == 13 -- so it is from 2001 to 2286: of other times the number could not be read
local terms = '|' .. ARGV[3] .. '|' .. ARGV[4] -- how a record says under which terms it is held
local lease_ends = string.format('%.0f', now + ARGV[3]) -- of one that begins now
local first = '|1|0|0|0||||' -- attempt to fence id of a first claim, without redrive or fingerprint
local first_tail = first .. lease_ends .. terms
local px_live, px_kept = ARGV[5], ARGV[6]
local issued_only = ARGV[10] == '1'
local codes = ARGV[12]
local reply = {now_text, epoch, ''}
-- A record that becomes done within its lease may keep its expiry, which is a retention away
-- and at most a lease more, where that is no more than a thousandth: one command, not two.
local keeps = not sets and ARGV[3] + 0 <= px_kept + 0
if sets then
  sets.start(now, ARGV[13])
end

local last_behind -- what stood behind the claim id of the last one completed: those claimed together share it
local made -- operations, once there is something for them
local lines = {}
local k, a, i = 2, 14, 1
while i <= #codes do
  local code = sub(codes, i, i)
  local begins, completes = code == 'b' or code == 'B', code == 'c'
  local gated = code == 'q' or issued_only and (begins or code == 'S')
  local parametrized = code == 'B' or code == 'S' or code == 'C'
  local _, last = find(codes, code .. '+', i) -- a run of one kind
  for n = i, last do
    if sets then
      k, a = sets.aim(code, k, a)
    end
    local key, claim, ikey, param = KEYS[k], ARGV[a], nil, nil
    if gated then
      k = k + 1
      ikey = KEYS[k]
    end
    if parametrized then
      a = a + 1
      param = ARGV[a]
    end
    k, a = k + 1, a + 1

    -- The line to answer, nil until it is known; what the key held, or the error of reading
    -- it, false if nothing, nil if it was not read.
    local line, met
    if begins then
      -- What a first claim's record says behind the claim id is the same for all of b.
      local behind = first_tail
      if param then
        local redrive, _, fp = match(param, claim_param)
        behind = '|1|0|0|' .. redrive .. '|' .. fp .. '|||' .. lease_ends .. terms
      end
      local home -- the set that has the token
      if sets then
        home, line = sets.where()
      end
      if home then
        met = pcall('GET', key)
        line = not met and 'D' or nil
      elseif not (issued_only or line) then
        met = pcall('SET', key, '1p|' .. claim .. behind, 'NX', 'GET', 'PX', px_live)
        line = not met and '' or nil
      end
      if type(met) == 'string' then
        local at = match(met, number) -- a duplicate, of an attempt 1 without redrive, payload or result
        line = at and 'd' .. at .. '|1|0|0'
      end
    elseif completes then
      -- What is in progress under its first claim, which is this one, with these terms and
      -- within its lease, is completed here. A claim's retention does not change (see
      -- store.Batch), so the record has it ahead of itself.
      local done = short and stamp .. sub(claim, -6) or '1d|' .. claim .. '|' .. stamp
      if keeps then
        met = pcall('SET', key, done, 'XX', 'GET', 'KEEPTTL')
      else
        met = pcall('GET', key)
      end
      if type(met) == 'string' then
        local usual = last_behind and met == '1p|' .. claim .. last_behind
        if not usual then
          local from = #claim + #first + 4
          local deadline = sub(met, from, from + #now_text - 1)
          local behind = first .. deadline .. terms
          if met == '1p|' .. claim .. behind and deadline > now_text then
            usual, last_behind = true, behind
          end
        end
        if usual then
          line = ''
          if sets then
            line = sets.add() or ''
            if line == '' then
              call('DEL', key)
            end
          elseif not keeps then
            call('SET', key, done, 'PX', px_kept)
          end
        elseif keeps then
          call('SET', key, met, 'KEEPTTL')
          keeps = false -- there may be more of the kind
        end
      end
    end
    if not line then
      made = made or operations(now, stamp, lease_ends, terms, reply)
      line = made[code](key, claim, param, ikey, met)
    end
    lines[n] = line
  end
  i = last + 1
end
reply[3] = table.concat(lines, '\n')
return reply
