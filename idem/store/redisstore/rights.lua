-- Says what the client's user may not do. Touches nothing, and needs no key.
--
-- ARGV[1]   how many keys follow
-- ARGV[2..] the keys; behind them commands, their words separated by spaces, where K
--           stands for the first key
-- Reply:    the clock in microseconds, empty if it may not be read; 1 if a key may not
--           be touched, else 0; then the numbers of the commands that are not allowed,
--           counted from 1. Those with a K are left out where the keys are forbidden.
local allowed = redis.acl_check_cmd
if not allowed then -- what is denied is then seen when it is tried
  return {'', '0'}
end

-- may is false too for a command that the server does not know, or has renamed.
local function may(words)
  local ok, yes = pcall(allowed, unpack(words))
  return ok and yes
end

local clock = redis.pcall('TIME')
local reply = {'', '0'}
if not clock.err then
  reply[1] = string.format('%.0f', clock[1] * 1000000 + clock[2])
end

local n = ARGV[1] + 0
for i = 2, n + 1 do
  if not may({'eval', 'x', '1', ARGV[i]}) and not may({'evalsha', 'x', '1', ARGV[i]}) then
    reply[2] = '1'
  end
end
for i = n + 2, #ARGV do
  local words, with_key = {}, false
  for w in string.gmatch(ARGV[i], '%S+') do
    if w == 'K' then
      w, with_key = ARGV[2], true
    end
    words[#words + 1] = w
  end
  if not (with_key and reply[2] == '1') and not may(words) then
    reply[#reply + 1] = tostring(i - n - 1)
  end
end
return reply
