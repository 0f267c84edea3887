#!lua flags=allow-oom
-- Reads the descriptor of a prefix, or makes it.
--
-- KEYS[1] the descriptor key
-- ARGV[1] its value if there is none
-- Reply:  its value
local v = redis.call('GET', KEYS[1])
if not v then
  v = ARGV[1]
  redis.call('SET', KEYS[1], v)
end
return v
