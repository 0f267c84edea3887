#!lua flags=allow-oom
-- Reads the descriptor of a prefix, or makes it, or replaces one of before.
--
-- KEYS[1] the descriptor key
-- ARGV[1] its value if there is none, or ARGV[2] is
-- ARGV[2] a value to replace; may be left out
-- Reply:  its value
local v = redis.call('GET', KEYS[1])
if not v or v == ARGV[2] then
  v = ARGV[1]
  redis.call('SET', KEYS[1], v)
end
return v
