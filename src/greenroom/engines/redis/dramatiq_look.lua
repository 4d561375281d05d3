-- A cheap look at Dramatiq's layout: whether there is any work in it, and whether anybody works with it.
--
-- KEYS     1 heartbeats, then the list and the delayed list of each queue
-- Returns  how many heartbeats there are, the newest; how long each list is

local newest = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2] or ''
local lengths = {}
for i = 2, #KEYS do
  lengths[i - 1] = redis.call('LLEN', KEYS[i])
end
return {redis.call('ZCARD', KEYS[1]), newest, lengths}
