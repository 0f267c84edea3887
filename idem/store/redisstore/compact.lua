-- The sets of done tokens: the compact layout. Stands before records.lua, and is called
-- by it; what holds for the records is said there.
--
-- A token belongs to a bucket, which is two sets of fingerprints: of the even and of the
-- odd generation. A generation lasts for the retention and a second, and begins at a
-- phase of its own in each bucket, so that not all of them change at once. What is done
-- goes into the set of the generation that is, which expires a second before the end of the next
-- one; it is looked for in both. So a token is known for a retention at least, and for
-- two generations at most.
--
-- The second is for expiry within a script, which goes by the time at which the script
-- began, while TIME runs on: an add lands in no set that has a moment to live.
--
-- KEYS  before the keys of each operation but r, R, w, t and k: its bucket's sets, the
--       even generation's first
-- ARGV  before its claim id: the fingerprint, a signed number of 64 bits, in which Lua
--       would lose digits; and for S, c and C, which may add, the bucket's phase, ms
--
-- Reply lines of its own:
--   D                  Duplicate, done, and nothing else is known
--   !t3, !t4           wrong type of the bucket's sets

local sets = {}
do
  local call, pcall, floor, format = redis.call, redis.pcall, math.floor, string.format
  local KEYS, ARGV = KEYS, ARGV

  local margin = 1000
  local without = {r = true, R = true, w = true, t = true, k = true} -- operations that need no bucket
  local adds = {S = true, c = true, C = true}

  local now, length -- ms
  local even, fingerprint, phase -- the operation's: a place in KEYS, and what ARGV has

  -- start is told the clock in microseconds, and how long a generation lasts.
  function sets.start(micros, generation)
    now, length = floor(micros / 1000), generation + 0
  end

  -- aim turns to the bucket of an operation whose keys and arguments begin at k and a, and
  -- returns where those are that records.lua knows.
  function sets.aim(code, k, a)
    if without[code] then
      return k, a
    end
    even, fingerprint = k, ARGV[a]
    if not adds[code] then
      return k + 2, a + 1
    end
    phase = ARGV[a + 1] + 0
    return k + 2, a + 2
  end

  -- try executes a command on the fingerprint in set n, 0 or 1: its answer, or nil and the
  -- line to answer.
  local function try(command, n)
    local answer = pcall(command, KEYS[even + n], fingerprint)
    if answer == 0 or answer == 1 then
      return answer
    elseif string.find(answer.err, '^WRONGTYPE') then
      return nil, '!t' .. 3 + n
    end
    error(answer)
  end

  -- where is the key of the set that has the token, or false; nil, and the line to answer,
  -- on error.
  function sets.where()
    for n = 0, 1 do
      local is, err = try('SISMEMBER', n)
      if err then
        return nil, err
      elseif is == 1 then
        return KEYS[even + n]
      end
    end
    return false
  end

  -- add returns the line to answer on error. A set that is to go earlier than what is
  -- added now is kept, with all that it has: the clock, or the settings, were changed.
  function sets.add()
    local generation = floor((now + phase) / length)
    local n = generation % 2
    local _, err = try('SADD', n)
    if err then
      return err
    end
    local key, goes = KEYS[even + n], (generation + 2) * length - phase - margin
    if call('PEXPIRETIME', key) < goes then
      call('PEXPIREAT', key, format('%.0f', goes))
    end
    return nil
  end

  -- remove tells whether the token was there; nil, and the line to answer, on error, and
  -- then it is as it was.
  function sets.remove()
    local was = false
    for _, command in ipairs({'SISMEMBER', 'SREM'}) do
      for n = 0, 1 do
        local is, err = try(command, n)
        if err then
          return nil, err
        end
        was = was or is == 1
      end
    end
    return was
  end
end

