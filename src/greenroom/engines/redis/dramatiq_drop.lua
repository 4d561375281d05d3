-- Deletes messages of one of Dramatiq's lists that nobody has claimed, from its head.
--
-- KEYS     1 list  2 bodies  3 due times (ours)
-- ARGV     how many
-- Returns  how many that were

local ids = redis.call('LRANGE', KEYS[1], 0, tonumber(ARGV[1]) - 1)
if #ids > 0 then
  redis.call('LTRIM', KEYS[1], #ids, -1)
  redis.call('HDEL', KEYS[2], unpack(ids))
  redis.call('ZREM', KEYS[3], unpack(ids))
end
return #ids
