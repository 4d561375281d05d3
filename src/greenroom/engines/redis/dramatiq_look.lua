-- A cheap look at Dramatiq's layout: whether there is any work in it, and whether anybody works with it.
--
-- KEYS     1 heartbeats, then the list and the delayed list of each queue
-- Returns  how many heartbeats there are, the newest; how long each list is

-- The trip has been made: whatever keys of that name may be, it must not fail now.
local newest = redis.pcall('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2] or ''
local function count(command, key)
  local n = redis.pcall(command, key)
  return type(n) == 'number' and n or 0
end
local lengths = {}
for i = 2, #KEYS do
  lengths[i - 1] = count('LLEN', KEYS[i])
end
return {count('ZCARD', KEYS[1]), newest, lengths}
