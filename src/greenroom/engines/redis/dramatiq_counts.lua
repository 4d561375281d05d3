-- How many messages Dramatiq's queues hold, at one moment.
--
-- KEYS     for each queue: list, bodies, delayed list, delayed bodies, dead
-- Returns  for each: waiting, all of the list; waiting to be due, all of the delayed list; dead

local counts = {}
for i = 1, #KEYS, 5 do
  counts[#counts + 1] = redis.call('LLEN', KEYS[i])
  counts[#counts + 1] = redis.call('HLEN', KEYS[i + 1])
  counts[#counts + 1] = redis.call('LLEN', KEYS[i + 2])
  counts[#counts + 1] = redis.call('HLEN', KEYS[i + 3])
  counts[#counts + 1] = redis.call('ZCARD', KEYS[i + 4])
end
return counts
