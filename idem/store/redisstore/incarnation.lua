#!lua flags=allow-oom
-- Draws a number that is higher than all drawn before: the clock in microseconds, or
-- one more than the last.
--
-- KEYS[1] the counter
-- ARGV[1] its expiry, ms
-- Reply:  the number, as a string
local t = redis.call('TIME')
local n = t[1] * 1000000 + t[2]
local last = redis.call('GET', KEYS[1])
if last then
  -- Beyond that a number and the next would be one.
  if not string.find(last, '^%d+$') or #last > 16 or tonumber(last) >= 9007199254740992 then
    return redis.error_reply('ERR not a counter; see what wrote it, then delete it')
  end
  n = math.max(n, last + 1)
end
local s = string.format('%.0f', n)
redis.call('SET', KEYS[1], s, 'PX', ARGV[1])
return s
